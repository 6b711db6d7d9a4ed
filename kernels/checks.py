"""What keeps a kernel inside its memory: tensors to plain arguments, or an error that says what was
expected and what came. csrc/checks.h does the same for the CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastadv._checks import text
from fastadv.reference import compute_dtype

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MOST = 2**31 - 2**24  # elements of a sample: indices within one, and a part more, are int32


def shape(t: Tensor) -> str:
    return text(t.shape)


def floating(t: Tensor, name: str) -> Tensor:
    """t, if its dtype is one that the kernels know."""
    if t.dtype not in DTYPES:
        raise TypeError(
            f"`{name}` must be float32, float64, bfloat16 or float16, got {str(t.dtype)[6:]}"
        )
    return t


@dataclass(frozen=True)
class Layout:
    """(N, *shape) in memory order: element k of a sample is of channel k // inner % channels."""

    samples: int
    size: int
    channels: int
    inner: int

    @property
    def total(self) -> int:
        return self.samples * self.size


def layout_of(t: Tensor, name: str) -> Layout:
    """Of a tensor that is contiguous, or channels_last in two or three dimensions."""
    if t.dim() == 0:
        raise ValueError(f"`{name}` must have a batch dimension, got a scalar")
    size, channels = t.shape[1:].numel(), t.shape[1] if t.dim() > 1 else 1
    if size > MOST:
        raise ValueError(f"`{name}` must have at most {MOST} elements a sample, got {size}")
    if t.is_contiguous():
        return Layout(t.shape[0], size, channels, max(t.shape[2:].numel(), 1))
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if t.dim() in formats and t.is_contiguous(memory_format=formats[t.dim()]):
        return Layout(t.shape[0], size, channels, 1)
    raise ValueError(f"`{name}` must be contiguous or channels_last, got strides {t.stride()}")


def check_like(t: Tensor, name: str, like: Tensor, like_name: str) -> None:
    """t has the shape, dtype, device and memory format of `like`."""
    if t.shape != like.shape:
        raise ValueError(f"`{name}` must be {shape(like)} like `{like_name}`, got {shape(t)}")
    check_kind(t, name, like.dtype, like)
    strides = zip(t.shape, t.stride(), like.stride(), strict=True)
    if any(n > 1 and one != other for n, one, other in strides):
        raise ValueError(f"`{name}` must have the memory format of `{like_name}`")


def check_kind(t: Tensor, name: str, dtype: torch.dtype, like: Tensor) -> None:
    """t is of `dtype`, on the device of `like`."""
    if t.dtype != dtype:
        raise TypeError(f"`{name}` must be {str(dtype)[6:]}, got {str(t.dtype)[6:]}")
    if t.device != like.device:
        raise ValueError(f"`{name}` must be on {like.device}, got {t.device}")


def check_apart(updated: Tensor, name: str, read: Tensor, other: str) -> None:
    """What is updated must not be what is read. Both are dense: their addresses tell."""
    start, end = updated.data_ptr(), updated.data_ptr() + updated.numel() * updated.element_size()
    first, last = read.data_ptr(), read.data_ptr() + read.numel() * read.element_size()
    if start < last and first < end:
        raise ValueError(
            f"`{name}` is updated in place and must share no memory with `{other}`: call .clone()"
        )


def per_sample(t: Tensor, name: str, like: Tensor, samples: int) -> tuple[Tensor, int]:
    """t, () or (N,), and the distance from one sample's number to the next."""
    if t.shape not in ((), (1,), (samples,)):
        raise ValueError(f"`{name}` must be () or ({samples},), got {shape(t)}")
    check_kind(t, name, compute_dtype(like.dtype), like)
    return t, 0 if t.numel() == 1 else t.stride(0)


def box_of(bounds: Tensor | None, layout: Layout, like: Tensor) -> tuple[Tensor | None, int, int]:
    """(bounds, channels, inner): bounds are those of channel k // inner % channels."""
    if bounds is None:
        return None, 1, 1
    if bounds.shape not in ((2,), (2, layout.channels)) or not bounds.is_contiguous():
        raise ValueError(f"`bounds` must be (2,) or (2, {layout.channels}), got {shape(bounds)}")
    check_kind(bounds, "bounds", compute_dtype(like.dtype), like)
    return bounds, bounds.numel() // 2, layout.inner


def current_device(t: Tensor) -> AbstractContextManager[Any]:
    """Kernels are launched on the current device's current stream: t's device becomes current."""
    return torch.cuda.device(t.device) if t.is_cuda else nullcontext()
