"""Linear layers, and their gradients, on weights packed once: 1x1 convolutions of rows.

MKL's products run at 93 to 97 GFLOP/s on one core of an EPYC, ours at 100 to 108, and at 180 to 200
in bfloat16; where the table of speeds says that MKL's are faster, they stay. torch.matmul also
writes a linear layer on transposed sequences as one product a token, whose weights it expands: that
becomes one product too.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from fastadv.engine import calls
from fastadv.engine.choice import left_to_aten
from fastadv.engine.graph import aten, insert, is_bias, is_weight, size_at, value
from fastadv.engine.speeds import Case

_ADDMM, _MM, _BMM = aten.addmm.default, aten.mm.default, aten.bmm.default
_FEWEST = 16  # numbers on a side, of which registers are full
_SAME = (aten.view.default, aten.reshape.default, aten.expand.default, aten.detach.default)


def serve_linears(
    graph: fx.Graph, bfloat16: bool, batch: int
) -> list[tuple[fx.Node, bool, str | None]]:
    """Puts the kernel in the place of each product with a weight; (weight, gradient, why not).
    batch: the size that it is chosen for."""
    rows = []
    for node in [node for node in graph.nodes if node.target in (_ADDMM, _MM, _BMM)]:
        bias, x, by = node.args if node.target is _ADDMM else (None, *node.args)
        found = _weight(by)
        if found is None:
            continue
        weight, turned = found
        why_not = _why_not(node, x, bias, weight, bfloat16)
        why_not = why_not or left_to_aten([_case(value(x), value(node), batch)], bfloat16)
        rows.append((weight, not turned, why_not))
        if why_not is None:
            _serve(node, x, bias, weight, turned, bfloat16)
    return rows


def _weight(node: Any) -> tuple[fx.Node, bool] | None:
    """The weight (K, C) that a matrix is, and whether it is turned: then x @ it is a layer's
    output, and else its gradient. A batch of equal matrices counts as one."""
    turned = False
    while isinstance(node, fx.Node) and not is_weight(node):
        before, shape = node.args[0] if node.args else None, value(node).shape
        if node.target is aten.t.default:
            turned = not turned
        elif node.target is aten.transpose.int:
            if {int(d) % len(shape) for d in node.args[1:]} != {len(shape) - 1, len(shape) - 2}:  # type: ignore[arg-type]
                return None
            turned = not turned
        elif node.target not in _SAME or value(before).shape[-2:] != shape[-2:]:
            return None
        node = before
    return (node, turned) if isinstance(node, fx.Node) and value(node).dim() == 2 else None


def _why_not(node: fx.Node, x: Any, bias: Any, weight: fx.Node, bfloat16: bool) -> str | None:
    given, w = value(x), value(weight)
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (given, w)):
        return "its numbers are not float32, on the CPU"
    if node.kwargs or not is_weight(bias):
        return "its bias is computed"
    if bias is not None and not is_bias(value(bias), w.shape[0]):
        return "its bias is not one contiguous number an output"
    # A last layer of few classes is as fast as ATen's, but for the call, and its logits' products
    # are float32.
    small = min(w.shape) if bfloat16 else max(w.shape)
    return "it is too small" if small < _FEWEST else None


def _case(x: Tensor, y: Tensor, batch: int) -> Case:
    rows = math.prod(size_at(size, batch) for size in x.shape[:-1])
    return Case("linear", 1, 1, int(x.shape[-1]), int(y.shape[-1]), 1, 1, rows)


def _serve(
    node: fx.Node, x: fx.Node, bias: fx.Node | None, weight: fx.Node, turned: bool, bfloat16: bool
) -> None:
    w: Tensor = value(weight)
    first = next(n for n in node.graph.nodes if n.op != "placeholder")
    args = (weight, not turned, bfloat16)
    packed = insert(first, calls.linear_weights, args, calls.linear_weights(w, *args[1:]), first)
    outputs = w.shape[0] if turned else w.shape[1]
    result = insert(node, calls.linear, (x, packed, bias, outputs), value(node), node)
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)
