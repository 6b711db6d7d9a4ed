"""Every (kernel, dtype, tile) that a launcher would choose, as it would be compiled.

Ahead-of-time compilation, the machine-code table and the PTX emulator read this list, and take
their tiles from the same place as the launchers: tiles.py. It needs Triton, but no driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from fastadv.kernels import tiles
from fastadv.kernels.accumulate import accumulate, advance, combine
from fastadv.kernels.digest import digest_kernel
from fastadv.kernels.head_margins import binary_cross_entropy, dlr, margin
from fastadv.kernels.head_probabilities import cross_entropy, kl
from fastadv.kernels.step_l1 import step_l1
from fastadv.kernels.step_l1_long import step_l1_long
from fastadv.kernels.step_l2 import step_l2
from fastadv.kernels.step_l2_long import moments_l2, step_l2_long
from fastadv.kernels.step_linf import step_linf
from fastadv.kernels.uniform import uniform_kernel

FLOATS = ("fp32", "fp16", "bf16", "fp64")
TORCH = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "fp64": 8}

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
        options = {
            "num_warps": self.warps,
            "num_stages": self.stages,
            "enable_fp_fusion": self.fusion,
        }
        object.__setattr__(self, "options", options)


def wide(dtype: str) -> str:
    """The dtype in which data of `dtype` is computed."""
    return "fp64" if dtype == "fp64" else "fp32"


def _step_arguments(dtype: str, bounds: str) -> tuple[dict[str, str], dict[str, Constant]]:
    """What all steps share: pointers to the data and its numbers."""
    data, numbers = f"*{dtype}", f"*{wide(dtype)}"
    signature = {"x_adv": data, "grad": data, "x": data, "step_size": numbers, "radius": numbers}
    constants: dict[str, Constant] = {"PER_SAMPLE": bounds == "each", "EACH": bounds == "each"}
    if bounds == "none":
        constants["bounds"] = None
    else:
        signature["bounds"] = numbers
    return signature, constants


SAMPLE = {
    "units": "i32",
    "step_stride": "i32",
    "radius_stride": "i32",
    "channels": "i32",
    "inner": "i32",
}
SIZES = (784, 3072, 4096)  # of samples held in registers: MNIST, CIFAR, the largest
LONG = 3 * 224 * 224


def _pointers(signature: dict[str, str]) -> tuple[str, ...]:
    return tuple(name for name, kind in signature.items() if kind[0] == "*")


def _step_linf() -> Iterator[Variant]:
    for dtype in FLOATS:
        for bounds in ("none", "one", "each"):
            signature, constants = _step_arguments(dtype, bounds)
            tile = tiles.elementwise(BYTES[dtype])
            yield Variant(
                f"step_linf.{dtype}.{bounds}",
                step_linf,
                signature
                | {"total": "i64", "size": "i32", "step_stride": "i32", "radius_stride": "i32"}
                | {"channels": "i32", "inner": "i32"},
                constants | {"STEEPEST": True, "BLOCK": tile.block},
                tile.warps,
                divisible=_pointers(signature),
                elements=tile.block,
            )


def _step_l2() -> Iterator[Variant]:
    for dtype in FLOATS:
        signature, constants = _step_arguments(dtype, "one")
        del constants["PER_SAMPLE"]
        constants |= {"UNIT": 16, "STEEPEST": True}
        for size in SIZES:
            tile = tiles.sample(size, BYTES[dtype])
            yield Variant(
                f"step_l2.{dtype}.{size}",
                step_l2,
                signature | SAMPLE,
                constants | {"BLOCK": tile.block},
                tile.warps,
                divisible=_pointers(signature),
            )
        for samples, name in ((tiles.FEW_SAMPLES, "many"), (1, "few")):
            yield from _step_l2_long(dtype, samples, name, signature, constants)


def _step_l2_long(
    dtype: str, samples: int, name: str, signature: dict[str, str], constants: dict[str, Constant]
) -> Iterator[Variant]:
    walk = tiles.long_sample(samples, LONG, BYTES[dtype])
    constants = constants | {"BLOCK": walk.tile.block}
    shares: dict[str, str] = {}
    if walk.parts == 1:
        constants["shares"] = None
    else:
        shares["shares"] = "*fp64"
        moments = {name: kind for name, kind in signature.items() if kind == f"*{dtype}"} | shares
        yield Variant(
            f"moments_l2.{dtype}.{name}",
            moments_l2,
            moments | {"units": "i32", "share": "i32"},
            {"UNIT": 16, "BLOCK": walk.tile.block},
            walk.tile.warps,
            divisible=_pointers(moments),
        )
    yield Variant(
        f"step_l2_long.{dtype}.{name}",
        step_l2_long,
        signature | shares | {"share": "i32"} | SAMPLE,
        constants | {"PARTS": tiles.PARTS},
        walk.tile.warps,
        divisible=_pointers(signature | shares),
    )


def _step_l1() -> Iterator[Variant]:
    for dtype in FLOATS:
        signature, constants = _step_arguments(dtype, "one")
        del constants["PER_SAMPLE"]
        constants |= {"UNIT": 16, "STEEPEST": True, "LOWEST": tiles.LOWEST[TORCH[dtype]]}
        held = [(step_l1, str(size), tiles.sample(size, BYTES[dtype])) for size in SIZES]
        for kernel, name, tile in (*held, (step_l1_long, "long", tiles.long_search(BYTES[dtype]))):
            yield Variant(
                f"step_l1.{dtype}.{name}",
                kernel,
                signature | {"rank": "i32"} | SAMPLE,
                constants | {"BLOCK": tile.block},
                tile.warps,
                divisible=_pointers(signature),
            )


def _uniform() -> Iterator[Variant]:
    for dtype in ("fp32", "fp64"):
        for source in ("number", "tensor"):
            tile = tiles.elementwise(BYTES[dtype])
            signature = {"out": f"*{dtype}"} | ({"state": "*i64"} if source == "tensor" else {})
            yield Variant(
                f"uniform.{dtype}.{source}",
                uniform_kernel,
                signature | {"seed": "i64", "offset": "i64", "stream": "i64", "units": "i32"},
                {"UNIT": 16, "BLOCK": tile.block} | ({} if source == "tensor" else {"state": None}),
                tile.warps,
                divisible=_pointers(signature),
                elements=tile.block,
            )


def _digest() -> Iterator[Variant]:
    for bits in (16, 32, 64):
        for size in (784, LONG):
            tile = tiles.digest(size, bits // 8)
            yield Variant(
                f"digest.i{bits}.{size}",
                digest_kernel,
                {"x": f"*i{bits}", "out": "*i64", "units": "i32"},
                {"UNIT": 16, "BLOCK": tile.block},
                tile.warps,
                divisible=("x", "out"),
            )


def _universal() -> Iterator[Variant]:
    for dtype in FLOATS:
        tile = tiles.batch(64, LONG, BYTES[dtype]).tile
        for signs, weights in ((False, True), (True, False)):
            signature = {"grads": f"*{dtype}", "sums": "*fp64"}
            constants: dict[str, Constant] = {"UNIT": 16, "SIGNS": signs, "BLOCK": tile.block}
            if weights:
                signature["weights"] = f"*{wide(dtype)}"
            else:
                constants["weights"] = None
            yield Variant(
                f"accumulate.{dtype}.{'signs' if signs else 'weighted'}",
                accumulate,
                signature | {"samples": "i64", "units": "i32", "rows": "i64"},
                constants,
                tile.warps,
                divisible=_pointers(signature),
                elements=tile.block,
            )
    tile = tiles.elementwise(8)
    for dtype in ("fp32", "fp64"):
        data, units = f"*{dtype}", {"units": "i32"}
        whole: dict[str, Constant] = {"UNIT": 16, "BLOCK": tile.block}
        signature = {"sums": "*fp64", "direction": data, "lengths": "*fp64"}
        plain = {"sums": "*fp64", "direction": data}
        yield Variant(
            f"combine.{dtype}",
            combine,
            plain | {"parts": "i32"} | units,
            whole | {"lengths": None},
            tile.warps,
            divisible=_pointers(plain),
            elements=tile.block,
        )
        yield Variant(
            f"combine.{dtype}.lengths",
            combine,
            signature | {"parts": "i32"} | units,
            whole,
            tile.warps,
            divisible=_pointers(signature),
            elements=tile.block,
        )
        signature = {"velocity": data, "direction": data, "lengths": "*fp64"}
        yield Variant(
            f"advance.{dtype}",
            advance,
            signature | {"momentum": "fp64", "programs": "i32"} | units,
            whole,
            tile.warps,
            divisible=_pointers(signature),
            elements=tile.block,
        )


CLASSES = (10, 1000, 8192, 32768)


def _heads() -> Iterator[Variant]:
    for dtype in FLOATS:
        for classes in CLASSES:
            for kernel in (cross_entropy, binary_cross_entropy, margin, kl, dlr):
                yield _head(dtype, classes, kernel, False)
            yield _head(dtype, classes, dlr, True)


def _head(dtype: str, classes: int, kernel: Any, aimed: bool) -> Variant:
    tile, data, numbers = tiles.head(classes), f"*{dtype}", f"*{wide(dtype)}"
    dense = kernel in (binary_cross_entropy, kl)
    signature = {"logits": data, "y": numbers if dense else "*i64", "loss": numbers, "grad": data}
    signature["prediction"] = "*i1" if kernel is binary_cross_entropy else "*i64"
    constants: dict[str, Constant] = {"UNIT": tiles.unit(classes)}
    constants |= {"ROWS": tile.rows, "COLS": tile.columns}
    rest = {"samples": "i32", "units": "i32"}
    if kernel is dlr:
        if aimed:
            signature["target"] = "*i64"
        else:
            constants["target"] = None
    else:
        rest["sign"] = "i32"
        constants["LONG"] = tile.long
    return Variant(
        f"{kernel.__name__}{'_targeted' if aimed else ''}.{dtype}.{classes}",
        kernel,
        signature | rest,
        constants,
        tile.warps,
        divisible=_pointers(signature),
    )


def variants() -> list[Variant]:
    """All of them."""
    parts = (_step_linf, _step_l2, _step_l1, _uniform, _digest, _universal, _heads)
    return [variant for part in parts for variant in part()]
