"""What stands around a compiled graph: memory formats, and the end of the parameters' gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


def is_image(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_floating_point()


def is_gray(x: Tensor) -> bool:
    return is_image(x) and x.shape[1] == 1


def in_format_of(x: Tensor, y: Any) -> Any:
    """Outputs that are images, contiguous for a contiguous x, as the model itself gives them; and
    all others contiguous, so that any view of them holds."""
    images = x.is_contiguous()

    def match(t: Any) -> Any:
        return t.contiguous() if isinstance(t, Tensor) and (images or t.dim() != 4) else t

    return tree_map(match, y)


def in_dtype_of(x: Tensor, y: Any) -> Any:
    """Outputs that autocast left in bfloat16, in x's dtype."""

    def match(t: Any) -> Any:
        return t.to(x.dtype) if isinstance(t, Tensor) and t.dtype == torch.bfloat16 else t

    return tree_map(match, y)


class ChannelsLast(torch.autograd.Function):
    """x in memory as the kernels read it, and its gradient as x is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.contiguous = x.is_contiguous()
        # With one sample, channel or pixel a format has many strides: these are the kernels', and
        # an alias keeps them, where a view of one sample does not.
        whole = x.stride()[:2] == (x.shape[1:].numel(), 1)
        if whole and x.is_contiguous(memory_format=torch.channels_last):
            alias: Tensor = torch.ops.aten.alias(x)
            return alias
        return x.clone(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Of one channel many strides are contiguous: those of a flat tensor's view are x's.
        return grad.contiguous().flatten().view_as(grad) if ctx.contiguous else grad


class NoGradient(torch.autograd.Function):
    """What stands in the place of a graph to the parameters, and says where there is one."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError(
            "a compiled model has gradients with respect to its input alone, and the input does "
            "not require grad: call x.requires_grad_(), or, to train, fast.learn(x), or the model "
            "itself, `fast.module`"
        )


def guarded(module: nn.Module, y: Any) -> Any:
    """Outputs that an input without a gradient gave, so that their backward says so."""
    if not any(p.requires_grad for p in module.parameters()):
        return y
    anchor = torch.empty(0, requires_grad=True)

    def guard(t: Any) -> Any:
        floating = isinstance(t, Tensor) and t.is_floating_point() and not t.requires_grad
        return NoGradient.apply(t, anchor) if floating else t  # type: ignore[no-untyped-call]

    return tree_map(guard, y)
