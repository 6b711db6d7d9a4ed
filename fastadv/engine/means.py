"""The mean over an image's pixels on a kernel of our own, with its gradient, and the flattening after
it without the detour that its gradient takes: a plan then has all of a ResNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from fastadv.engine import calls
from fastadv.engine.graph import insert, is_channels_last, value
from fastadv.engine.report import Row

_aten = torch.ops.aten
_MEAN, _DIVIDE, _EXPAND = _aten.mean.dim, _aten.div.Scalar, _aten.expand.default
_SCATTER, _STRIDED, _COPY = _aten.as_strided_scatter.default, _aten.as_strided.default, _aten.copy


def mean_pixels(graph: fx.Graph) -> list[Row]:
    """Serves the means of a graph that the kernel takes, and says so."""
    rows = []
    for node in list(graph.nodes):
        if node.target is _MEAN and _is_over_pixels(node):
            _replace(node, calls.mean, (node.args[0], True in node.args[2:]), value(node))
            rows.append(Row("(pool)", "mean over pixels", "one pass", "one pass"))
        elif node.target is _DIVIDE and (grad := _spread(node)) is not None:
            val = value(node)
            size = tuple(val.shape[2:])
            like = val.contiguous(memory_format=torch.channels_last)
            _replace(node, calls.mean_gradient, (grad, size), like)
        elif node.target is _SCATTER:
            _pass_by(node)
    return rows


def _replace(node: fx.Node, target: Any, args: tuple[Any, ...], val: Tensor) -> None:
    node.replace_all_uses_with(insert(node, target, args, val, node))


def _is_over_pixels(node: fx.Node) -> bool:
    """A mean of (N, C, H, W) over H and W."""
    dims: Any = node.args[1]
    if not is_channels_last(value(node.args[0])) or node.kwargs or not dims:
        return False
    return sorted(d % 4 for d in dims) == [2, 3]


def _spread(node: fx.Node) -> fx.Node | None:
    """The gradient of such a mean, where the node is its share for each pixel."""
    expanded, by = node.args
    y: Any = value(node)
    if not isinstance(expanded, fx.Node) or expanded.target is not _EXPAND or y.dim() != 4:
        return None
    grad = expanded.args[0]
    g: Any = value(grad)
    if not all(isinstance(s, int) for s in y.shape[1:]) or y.dtype != torch.float32:
        return None
    if y.device.type != "cpu" or g.dim() != 4 or tuple(g.shape[1:]) != (y.shape[1], 1, 1):
        return None
    return grad if by == y.shape[2] * y.shape[3] and isinstance(grad, fx.Node) else None


def _pass_by(scatter: fx.Node) -> None:
    """A view's gradient is written into zeros, which it fills, and viewed again: of a tensor that
    is as long and in order this is the tensor itself."""
    _, source, _, strides, *offset = scatter.args
    if isinstance(source, fx.Node) and source.target is _COPY.default:
        source = source.args[1]
    given: Any = value(source)
    if not isinstance(source, fx.Node) or not isinstance(given, Tensor):
        return
    whole = statically_known_true(given.numel() == value(scatter).numel())
    in_order = given.is_contiguous() and tuple(strides) == given.stride()
    if not (whole and in_order) or given.dtype != value(scatter).dtype or offset not in ([], [0]):
        return
    for user in list(scatter.users):
        view: Any = value(user)
        inside = user.target is _STRIDED and user.args[3:] == (0,) and view.is_contiguous()
        if inside and statically_known_true(view.numel() == given.numel()):
            args = (source, user.args[1])
            _replace(user, _aten.reshape.default, args, view)
