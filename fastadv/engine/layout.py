"""Views and copies of a graph of tokens: what is a matter of memory alone is taken out.

Autograd's graph copies wherever a layer of torch asks for contiguous memory; kernels of ours and
ATen's take strides, and most of these copies only move numbers to where they were before.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from fastadv.engine import calls
from fastadv.engine.graph import ADD, aten, insert, only_user, value

CLONE = (aten.clone.default, aten.alias.default, aten.detach.default)
RESHAPE = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)
TURNS = (aten.transpose.int, aten.permute.default, aten.t.default)
VIEWS = (
    *CLONE, *RESHAPE, *TURNS, aten.expand.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.squeeze.default, aten.unsqueeze.default, aten.select.int, aten.slice.Tensor,
    aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int,
)  # fmt: skip
STRICT = (  # they read memory as they expect it to be: ATen's attention beyond a tensor's end
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    aten.view_as_complex.default, aten.view.dtype,
)  # fmt: skip


def sizes(node: object) -> tuple[Any, ...]:
    """A tensor's shape, of numbers and, for the batch's, formulas."""
    shape = value(node).shape
    return tuple(s.node.expr if isinstance(s, torch.SymInt) else int(s) for s in shape)


def sum_after(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(the sum, the other term) if all that reads a node is the sum with a tensor of its shape, in
    float32: graph.residual_after, of tokens."""
    user = only_user(node)
    if user is None or user.target is not ADD or user.kwargs or len(user.args) != 2:
        return None
    other = user.args[1] if user.args[0] is node else user.args[0]
    term = value(other)
    if not isinstance(other, fx.Node) or not isinstance(term, Tensor):
        return None
    fits = term.dtype == torch.float32 and term.device.type == "cpu" and sizes(other) == sizes(node)
    return (user, other) if fits else None


def tidy(graph: fx.Graph) -> None:
    """Takes out copies of what a graph computes, and reshapes that others undo."""
    if any(node.target in (aten.as_strided.default, aten.copy_.default) for node in graph.nodes):
        return
    for node in list(graph.nodes):
        if node.target in RESHAPE:
            _reshape(node)
        elif _is_nothing(node):
            _replace(node)
    graph.eliminate_dead_code()


def _is_nothing(node: fx.Node) -> bool:
    if node.target is aten.expand.default:
        return sizes(node) == sizes(node.args[0]) and not _leaves(node)
    return node.target is aten.clone.default and _is_computed(node) and not _leaves(node)


def lift_linears(graph: fx.Graph) -> None:
    """Linear layers of tokens, not of a list of all of them: no copy where these are turned."""
    for node in [node for node in graph.nodes if node.target is calls.linear]:
        flat, packed, *rest = node.args
        if flat.target is not aten.reshape.default:
            continue
        tokens = _tokens(flat.args[0], sizes(flat)[-1])
        if tokens is None or tokens == sizes(flat):
            continue
        x = value(flat.args[0])
        outputs = rest[1]
        like = [-1 if not isinstance(s, int) else s for s in tokens[:-1]]
        val = value(flat.args[0]).reshape(*x.shape[: len(like)], tokens[-1])
        args = (flat.args[0], [*like, tokens[-1]])
        given = insert(node, aten.reshape.default, args, val, node)
        y = x.new_empty((*x.shape[: len(like)], outputs), dtype=torch.float32)
        made = insert(node, calls.linear, (given, packed, *rest), y, node)
        shape = (made, [*flat.args[1][:-1], outputs])
        node.replace_all_uses_with(insert(node, aten.reshape.default, shape, value(node), node))
    tidy(graph)


def _tokens(node: Any, channels: object) -> tuple[Any, ...] | None:
    """The shape of a tensor whose last sizes are joined to `channels`; at most one is a formula."""
    shape = sizes(node)
    for k in range(1, len(shape)):
        tail = shape[k:]
        if all(isinstance(s, int) for s in tail) and prod(tail) == channels:
            known = [s for s in shape[:k] if isinstance(s, int)]
            return (*shape[:k], channels) if len(known) >= k - 1 and 0 not in known else None
    return None


def _replace(node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    node.replace_all_uses_with(source)


def _reshape(node: fx.Node) -> None:
    node.target = aten.reshape.default
    source = node.args[0]
    while isinstance(source, fx.Node) and source.target is aten.reshape.default:
        source = source.args[0]
    assert isinstance(source, fx.Node)
    node.args = (source, node.args[1])
    if sizes(node) == sizes(source) and not _leaves(node):
        _replace(node)


def _is_computed(node: fx.Node) -> bool:
    """Whether its memory is the graph's own, and no input's."""
    source: Any = node
    while isinstance(source, fx.Node) and (source.target in VIEWS or _is_part(source)):
        source = source.args[0]
    return isinstance(source, fx.Node) and source.op != "placeholder"


def _is_part(node: fx.Node) -> bool:
    before = node.args[0] if node.args else None
    return isinstance(before, fx.Node) and node.op == "call_function" and before.target in VIEWS


def _leaves(node: fx.Node) -> bool:
    """Whether it, or a view of it, is a result, whose memory is no one else's, or is read by what
    asks for its strides: an op of `STRICT`, or one that is not torch's."""
    return any(
        user.op == "output"
        or user.target in STRICT
        or getattr(user.target, "namespace", "aten") != "aten"
        or ((user.target in VIEWS or _is_part(user)) and _leaves(user))
        for user in node.users
    )
