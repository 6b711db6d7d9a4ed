"""Images are channels last in a compiled model, and views that were written for contiguous ones
hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
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
