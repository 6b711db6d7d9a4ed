"""Variant: one compilation of a kernel, as a launcher would have it compiled."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from fastadv.kernels import tiles

FLOATS = ("fp32", "fp16", "bf16", "fp64")
TORCH = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}

LONG = 3 * 224 * 224  # elements of a sample of ImageNet

Constant = int | str | bool | float | None


@dataclass(frozen=True)
class Variant:
    """One compilation: a kernel, the types of its arguments, and what is constant in it.

    signature: argument -> Triton type, of the arguments that are no constants.
    constants: argument -> value; None is an argument that is not there, as bounds.
    divisible: arguments that are multiples of 16 (addresses: of 16 B).
    elements: of the data that one program treats; 0 where it treats a whole sample.
    fusion: whether multiplications may be fused with additions, which changes bits.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Constant]
    warps: int
    stages: int = 1
    divisible: tuple[str, ...] = ()
    elements: int = 0
    fusion: bool = False
    options: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        options = tiles.options(self.warps)
        options |= {"num_stages": self.stages, "enable_fp_fusion": self.fusion}
        object.__setattr__(self, "options", options)


def wide(dtype: str) -> str:
    """The dtype in which data of `dtype` is computed."""
    return "fp64" if dtype == "fp64" else "fp32"


def pointers(signature: dict[str, str]) -> tuple[str, ...]:
    """The arguments that are tensors: torch allocates at multiples of 16 B."""
    return tuple(name for name, kind in signature.items() if kind[0] == "*")
