"""Attention on a kernel of our own: heads are read where they stand in the tensor that a linear
layer wrote, and their gradients are written to where that layer's gradient reads them.

Served is scaled dot product attention as torch has it on the CPU, without a mask, dropout or
causality, of at most 256 tokens and numbers a head. All else stays as it is.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import unset_fake_temporarily

from fastadv.engine import tokens, trail
from fastadv.engine.choice import left_to_aten
from fastadv.engine.graph import aten, insert, item, size_at, value
from fastadv.engine.layout import sizes
from fastadv.engine.reference_tokens import room
from fastadv.engine.report import Row
from fastadv.engine.speeds import Case
from fastadv.engine.tokens import Place

_FORWARD = aten._scaled_dot_product_flash_attention_for_cpu.default
_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
_MOST = 256  # as kAttentionMost in csrc/cpu/engine_args.h


@dataclass
class _Packing:
    """In which tensors q, k and v stand, and which nodes are the gradients of these."""

    sources: list[fx.Node]
    orders: list[list[int]]  # of each source's dimensions, the batch's first
    places: tokens.Places
    gradients: list[list[fx.Node]]  # of each backward, one a source


def attend_heads(graph: fx.Graph, bfloat16: bool, batch: int) -> list[Row]:
    """Serves the attentions of a graph that the kernel takes, and says which. batch: the size that
    they are chosen for."""
    rows = []
    for node in [node for node in graph.nodes if node.target is _FORWARD]:
        why_not = _why_not(node) or left_to_aten(_cases(node, batch), bfloat16)
        if why_not is None:
            _serve(node, bfloat16)
        by = "ATen" if why_not else "a head at a time" + (", bfloat16" if bfloat16 else "")
        rows.append(Row("(attention)", "attention", by, why_not or "no pass splits or joins heads"))
    graph.eliminate_dead_code()
    return rows


def _part(node: fx.Node, index: int) -> fx.Node | None:
    """node[index], if anything reads it."""
    found = [user for user in node.users if user.args[1] == index and user.users]
    return found[0] if len(found) == 1 else None


def _backwards(node: fx.Node) -> list[fx.Node]:
    sums = _part(node, 1)
    return list(sums.users) if sums else []


def _why_not(node: fx.Node) -> str | None:
    if any(arg for arg in node.args[3:]) or node.kwargs.get("attn_mask") is not None:
        return "it has a mask, dropout or causality"
    heads = [value(arg) for arg in node.args[:3]]
    if any(t.dtype != torch.float32 or t.device.type != "cpu" or t.dim() != 4 for t in heads):
        return "its numbers are not float32, on the CPU"
    shapes = [sizes(arg) for arg in node.args[:3]]
    if any(shape != shapes[0] for shape in shapes):
        return "its queries are not as many as its keys"
    if not all(isinstance(size, int) and size > 0 for size in shapes[0][1:]):
        return "its sizes are not known"
    if max(shapes[0][2:]) > _MOST:
        return f"it has more than {_MOST} tokens, or numbers a head"
    if any(
        user.target is not _BACKWARD or user.args[1:4] != node.args[:3] for user in _backwards(node)
    ):
        return "its sums are read"
    return None


def _cases(node: fx.Node, batch: int) -> list[Case]:
    n, heads, length, width = value(node.args[0]).shape
    ops = ["attention"] + ["attention gradient" for _ in _backwards(node)]
    return [Case(op, 1, 1, width, heads, length, length, size_at(n, batch)) for op in ops]


def _serve(node: fx.Node, bfloat16: bool) -> None:
    q: Tensor = value(node.args[0])
    given: Any = node.kwargs.get("scale")
    scale = float(q.shape[3]) ** -0.5 if given is None else float(given)
    with unset_fake_temporarily():  # what views do is tried on real numbers
        packing = _packed(node) or _apart(node)
    sources = [
        _batch_first(s, order) for s, order in zip(packing.sources, packing.orders, strict=True)
    ]
    p = q.new_empty(
        (*q.shape[:3], room(q.shape[2], bfloat16)), dtype=torch.bfloat16 if bfloat16 else q.dtype
    )
    args = (sources, packing.places, scale, bfloat16)
    both = insert(node, tokens.attend, args, (value(node)[0], p), node)
    for backward, gradients in zip(_backwards(node), packing.gradients, strict=True):
        given_args = (backward.args[0], item(both, 1), *args)
        vals = [value(source) for source in sources]
        made = insert(backward, tokens.attend_gradient, given_args, vals, backward)
        for i, gradient in enumerate(gradients):
            by, order = item(made, i), packing.orders[i]
            back = sorted(range(len(order)), key=order.__getitem__)
            if order != sorted(order):
                by = insert(by.next, aten.permute.default, (by, back), value(gradient), backward)
            gradient.replace_all_uses_with(by)
    for part in [user for user in node.users if user.args[1] == 0]:
        part.replace_all_uses_with(item(both, 0))


def _batch_first(source: fx.Node, order: list[int]) -> fx.Node:
    if order == sorted(order):
        return source
    return insert(
        source.next, aten.permute.default, (source, order), value(source).permute(order), source
    )


def _apart(node: fx.Node) -> _Packing:
    """q, k and v as they are, and their gradients."""
    q, k, v = node.args[:3]
    heads = tuple(int(size) for size in sizes(q)[1:])
    unit = tuple(tuple(int(i == j) for j in range(4)) for i in range(4))
    place = Place(heads, (0, 0, 0, 0), unit)
    gradients = [[item(backward, i) for i in range(3)] for backward in _backwards(node)]
    places = tuple((i, place) for i in range(3))
    return _Packing([q, k, v], [[0, 1, 2, 3]] * 3, places, gradients)  # type: ignore[list-item]


def _packed(node: fx.Node) -> _Packing | None:
    """The tensors that q, k and v are views of, where these views, and what autograd makes of them,
    do nothing but move numbers."""
    traced = [trail.source_of(arg) for arg in node.args[:3]]  # type: ignore[arg-type]
    sources = list(dict.fromkeys(source for source, _ in traced))
    if any(s.op == "placeholder" or not isinstance(value(s), Tensor) for s in sources):
        return None
    found = [_placed(source, path) for source, path in traced]
    which = [sources.index(source) for source, _ in traced]
    orders: list[list[int]] = []
    for i, source in enumerate(sources):
        own = [place for place, j in zip(found, which, strict=True) if i == j]
        order = _order(source, own, sizes(node.args[0])[0])
        if order is None:
            return None
        orders.append(order)
    places = [(i, _in_order(p, orders[i])) for i, p in zip(which, found, strict=True) if p]
    packing = _Packing(sources, orders, tuple(places), [])
    for backward in _backwards(node):
        gradients = _gradients(backward, packing)
        if gradients is None:
            return None
        packing.gradients.append(gradients)
    return packing


def _placed(source: fx.Node, path: list[fx.Node]) -> Place | None:
    """Where heads stand in a source, whatever the batch, their numbers side by side."""
    tried = [trail.place_in(source, path, n) for n in trail.batches(source)]
    place = tried[0]
    if place is None or any(other != place for other in tried):
        return None
    return place if place.steps[3] == (*[0] * (len(sizes(source)) - 1), 1) else None


def _order(source: fx.Node, found: list[Place | None], batch: Any) -> list[int] | None:
    """The dimensions of a source with the batch's, which is a sample's alone, first."""
    places = [place for place in found if place is not None]
    if len(places) < len(found):
        return None
    for d, size in enumerate(sizes(source)):
        alone = all(p.first[d] == 0 and [s[d] for s in p.steps] == [1, 0, 0, 0] for p in places)
        only = all(sum(p.steps[0]) == 1 for p in places)
        if size == batch and alone and only:
            return [d, *(e for e in range(len(sizes(source))) if e != d)]
    return None


def _in_order(place: Place, order: list[int]) -> Place:
    steps = tuple(tuple(step[d] for d in order) for step in place.steps)
    return Place(place.heads, tuple(place.first[d] for d in order), steps)


def _gradients(backward: fx.Node, packing: _Packing) -> list[fx.Node] | None:
    """The node that is each source's gradient, all of whose numbers are of q, k or v."""
    chosen: list[fx.Node] = []
    for batch in trail.batches(backward.args[0]):  # type: ignore[arg-type]
        expected = _expected(packing, batch, trail.shape_at(backward.args[0], batch))  # type: ignore[arg-type]
        if expected is None:
            return None
        known = _known(backward, batch)
        equal = [
            [n for n, t in known.items() if t.shape == e.shape and torch.equal(t, e)]
            for e in expected
        ]
        if not all(equal):
            return None
        first = [nodes[0] for nodes in equal]
        if chosen and first != chosen:
            return None
        chosen = first
    return chosen


def _numbers(shape: tuple[int, ...]) -> list[Tensor]:
    """Numbers of which none is twice among the heads of three tensors."""
    count = torch.Size(shape).numel()
    return [torch.arange(1 + i * count, 1 + (i + 1) * count).view(shape) for i in range(3)]


def _expected(packing: _Packing, batch: int, shape: tuple[int, ...]) -> list[Tensor] | None:
    expected = []
    for i, (source, order) in enumerate(zip(packing.sources, packing.orders, strict=True)):
        full = trail.shape_at(source, batch)
        t = torch.zeros([full[d] for d in order], dtype=torch.long)
        at, given = torch.arange(t.numel()).view(t.shape), 0
        for (which, place), numbers in zip(packing.places, _numbers(shape), strict=True):
            if which == i:
                t.view(-1)[place.of(at)] = numbers
                given += numbers.numel()
        if not t.all() or given != t.numel():  # a number that is two heads' has the sum of theirs
            return None
        expected.append(t.permute(sorted(range(len(order)), key=order.__getitem__)))
    return expected


def _known(backward: fx.Node, batch: int) -> dict[fx.Node, Tensor]:
    """What is made of the gradients by q, k and v by moving numbers alone."""
    shape = trail.shape_at(backward.args[0], batch)  # type: ignore[arg-type]
    known: dict[fx.Node, Any] = {}
    for user in backward.users:
        if user.target is operator.getitem:
            known[user] = _numbers(shape)[user.args[1]]  # type: ignore[index]
    node = backward.next
    while node.op != "output":
        tensors = [n for n in node.all_input_nodes if not isinstance(value(n), torch.SymInt)]
        if node not in known and tensors and trail.moves(node) and all(n in known for n in tensors):
            known[node] = trail.run(node, known, batch)
        node = node.next
    return {node: t for node, t in known.items() if isinstance(t, Tensor)}
