"""Max pooling on a kernel of our own: a byte an output in place of an index of eight, and the
gradient in one pass with the slopes of the activation before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fastadv.engine import calls
from fastadv.engine.graph import gradient_tail, insert, is_channels_last, item, value
from fastadv.engine.reference_pool import room
from fastadv.engine.report import Row

_POOL = torch.ops.aten.max_pool2d_with_indices.default
_GRADIENT = torch.ops.aten.max_pool2d_with_indices_backward.default
_TAPS = 256  # a byte's


def pool_maxima(graph: fx.Graph) -> list[Row]:
    """Serves the poolings of a graph that the kernel takes, and says which."""
    rows = []
    for node in [node for node in graph.nodes if node.target is _POOL]:
        why_not = _why_not(node)
        if why_not is None:
            fused = _serve(node)
            rows.append(Row("(pool)", f"max pool{fused}", "one pass", "a byte an output"))
        else:
            rows.append(Row("(pool)", "max pool", "ATen", why_not))
    return rows


def _window(node: fx.Node, first: int) -> tuple[tuple[int, int], ...]:
    """Kernel, stride and padding, from the arguments that begin at `first`."""
    kernel, *more = node.args[first:]
    stride = more[0] if more and more[0] else kernel
    padding = more[1] if len(more) > 1 else [0, 0]
    pairs: Any = (kernel, stride, padding)
    return tuple((int(p[0]), int(p[-1])) for p in pairs)


def _why_not(node: fx.Node) -> str | None:
    x, y = value(node.args[0]), value(node)[0]
    if not is_channels_last(x) or not is_channels_last(y):
        return "its images are not float32 and channels last"
    dilation: Any = node.args[4] if len(node.args) > 4 else [1, 1]
    kernel, _, _ = _window(node, 1)
    if any(d != 1 for d in dilation) or kernel[0] * kernel[1] > _TAPS:
        return "its windows are dilated" if any(d != 1 for d in dilation) else "too many taps"
    taken = [user for user in node.users if user.args[1] == 1]
    readers = [reader for item in taken for reader in item.users]
    if any(reader.target is not _GRADIENT for reader in readers):
        return "its indices are read"
    return None


def _serve(node: fx.Node) -> str:
    x, y = value(node.args[0]), value(node)[0]
    kernel, stride, padding = _window(node, 1)
    n, channels, *size = y.shape
    taken = y.new_empty((n, *size, room(channels)), dtype=torch.uint8)
    args = (node.args[0], tuple(size), kernel, stride, padding)
    both = insert(node, calls.max_pool, args, (y, taken), node)
    fused = ""
    # By its indices: the next pool's gradient is given this one's output.
    taken_by = [r for user in node.users if user.args[1] == 1 for r in user.users]
    for gradient in taken_by:
        last, residual, slopes, leak, fused = gradient_tail(gradient)
        place = (tuple(x.shape[2:]), kernel, stride, padding, leak)
        call = (gradient.args[0], item(both, 1), residual, slopes, *place)
        last.replace_all_uses_with(
            insert(last, calls.max_pool_gradient, call, value(last), gradient)
        )
    for user in [user for user in node.users if user.args[1] == 0]:
        user.replace_all_uses_with(item(both, 0))
    return fused
