"""Images that come to a convolution in another order are turned by its call; what follows is laid
out as that makes it.

torch keeps the order of what a layer is given. Where a model cuts channels off, joins such parts,
or sums over a dimension, it goes over to contiguous images, and all layers after that would be
ATen's: of CSPDarkNet-53's 68 convolutions 62 were.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from fastadv.engine.choice import has_kernel_of_ours, is_gradient
from fastadv.engine.graph import (
    CONVOLUTION,
    CONVOLUTION_BACKWARD,
    aten,
    insert,
    is_channels_last,
    is_image,
    value,
    writes,
)
from fastadv.engine.layout import STRICT

_MEMORY = (aten.as_strided.default, aten.as_strided_scatter.default)


def lay_out_images(graph: fx.Graph) -> None:
    """Says so of a graph's nodes; of none where one that depends on it cannot be followed."""
    layout = _Layout()
    if all(layout.follow(node) for node in graph.nodes):
        layout.apply(graph)


def keep_strides(graph: fx.Graph) -> None:
    """What is read as memory has the strides that it was traced with, whoever computed it."""
    for node in [node for node in graph.nodes if node.target in _MEMORY]:
        x: Any = node.args[0]
        strides = value(x).stride()
        if all(isinstance(stride, int) for stride in strides):
            node.update_arg(0, insert(node, laid_out, (x, tuple(strides)), value(x), node))


def laid_out(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """x, or a copy of it with these strides."""
    if x.stride() == strides:
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)


class _Layout:
    """What the nodes' values are, where that is another order than they were traced in."""

    def __init__(self) -> None:
        self.values: dict[fx.Node, Any] = {}

    def follow(self, node: fx.Node) -> bool:
        """Looks at a node after all that it reads; False where it cannot be followed."""
        changed = [n for n in node.all_input_nodes if n in self.values]
        if node.op == "output":
            return all(value(n).is_contiguous() for n in changed if isinstance(value(n), Tensor))
        if self._turns(node):
            return self._compute(node, True)
        if not changed:
            return True
        if node.target in (*STRICT, *_MEMORY) or writes(node):
            return False
        own = getattr(node.target, "namespace", "aten") == "aten"
        return own and self._compute(node, False)

    def _value(self, node: Any) -> Any:
        return self.values.get(node, value(node))

    def _turns(self, node: fx.Node) -> bool:
        if node.target not in (CONVOLUTION, CONVOLUTION_BACKWARD):
            return False
        x = self._value(node.args[0])
        return is_image(x) and not is_channels_last(x) and has_kernel_of_ours(node)

    def _compute(self, node: fx.Node, turned: bool) -> bool:
        args: Any = fx.node.map_arg(node.args, self._value)
        kwargs: Any = fx.node.map_arg(node.kwargs, self._value)
        if turned:
            args = (_channels_last(args[0]), *args[1:])
        mode = _mode_of(node)
        if mode is None:
            return False
        try:
            with mode:
                found = node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, ValueError):  # a view of memory in another order, most likely
            return False
        if is_gradient(node) and is_channels_last(args[0]):  # whoever serves it
            found = (_channels_last(found[0]), *found[1:])
        if not _same_order(found, value(node)):
            self.values[node] = found
        return True

    def apply(self, graph: fx.Graph) -> None:
        """And leaves the graph's results as they were: they are contiguous."""
        output = next(node for node in graph.nodes if node.op == "output")
        for node in [n for n in output.all_input_nodes if n in self.values]:
            if isinstance(value(node), Tensor):
                copied = insert(output, aten.clone.default, (node,), value(node), node)
                copied.kwargs = {"memory_format": torch.contiguous_format}
                output.replace_input_with(node, copied)
        for node, found in self.values.items():
            node.meta["val"] = found


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def _mode_of(node: fx.Node) -> FakeTensorMode | None:
    vals = [value(n) for n in (node, *node.all_input_nodes)]
    flat = [t for v in vals for t in (v if isinstance(v, tuple | list) else [v])]
    return next((mode for t in flat if (mode := getattr(t, "fake_mode", None)) is not None), None)


def _same_order(one: Any, other: Any) -> bool:
    if isinstance(one, tuple | list):
        return all(_same_order(a, b) for a, b in zip(one, other, strict=True))
    return not isinstance(one, Tensor) or one.stride() == other.stride()
