"""Data to measure on, and options that benchmarks share."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "bfloat16", "float16")}


def shape(text: str) -> tuple[int, ...]:
    """64x3x224x224 to (64, 3, 224, 224)."""
    try:
        sizes = tuple(int(part) for part in text.split("x"))
    except ValueError:
        sizes = ()
    if len(sizes) < 2 or min(sizes, default=0) < 1:
        raise argparse.ArgumentTypeError(f"must be like 64x3x224x224, got {text!r}")
    return sizes


def batch(sizes: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x_adv, grad and x: a random point near x, as in the middle of an attack."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(sizes, generator=generator).to(dtype)
    grad = torch.randn(sizes, generator=generator).to(dtype)
    noise = 0.02 * torch.randn(sizes, generator=generator)
    return (x.float() + noise).clamp(0, 1).to(dtype), grad, x
