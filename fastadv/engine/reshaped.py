"""Images are channels last in a compiled model, and views that were written for contiguous ones
hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.overrides import TorchFunctionMode


class Reshaped(TorchFunctionMode):
    """While it is entered, x.view(...) of a layout that has no such view is x.reshape(...).

    A model's x.view(len(x), -1) after its last convolution is right for the images that it is
    given, and would raise for the same images channels last.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.Tensor.view and len(args) > 1 and not isinstance(args[1], torch.dtype):
            return args[0].reshape(*args[1:])
        return func(*args, **(kwargs or {}))


_VIEWS = {
    "view", "permute", "transpose", "t", "flatten", "squeeze", "unsqueeze", "select", "narrow",
    "expand", "getitem", "chunk", "split", "unbind", "view_as", "detach",
}  # fmt: skip
_WRITES = {"setitem", "iadd", "isub", "imul", "itruediv", "iand", "ior", "ipow"}


def writes_on_copies(graph: fx.Graph) -> bool:
    """Whether Dynamo's graph writes in place on what was, or may have been, a view: of a reshaped
    copy the tensor that it was a view of would not change."""
    return any(_writes(node) and _is_reshaped(node.args[0]) for node in graph.nodes if node.args)


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _writes(node: fx.Node) -> bool:
    name = _name(node)
    ends = name.endswith("_") and not name.endswith("__")
    return node.op.startswith("call") and (
        ends or name in _WRITES or bool(node.kwargs.get("inplace")) or True in node.args[1:]
    )


def _is_reshaped(node: object) -> bool:
    while isinstance(node, fx.Node):
        name = _name(node)
        if name == "reshape":
            return True
        if name not in _VIEWS or not node.args:
            return False
        node = node.args[0]
    return False
