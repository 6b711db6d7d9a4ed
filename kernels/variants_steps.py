"""The variants of the steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastadv.kernels import tiles
from fastadv.kernels.step_l1 import step_l1
from fastadv.kernels.step_l1_long import step_l1_long
from fastadv.kernels.step_l2 import step_l2
from fastadv.kernels.step_l2_long import moments_l2, step_l2_long
from fastadv.kernels.step_linf import step_linf
from fastadv.kernels.variant import BYTES, FLOATS, LONG, TORCH, Constant, Variant, pointers, wide


def _arguments(dtype: str, form: str) -> tuple[dict[str, str], dict[str, Constant]]:
    """What all steps share: pointers to the data and its numbers.

    form: "none", "one" or "each", of the bounds; "universal", whose x is zero and whose gradient is
    a sum in the compute dtype.
    """
    data, numbers = f"*{dtype}", f"*{wide(dtype)}"
    signature = {"x_adv": data, "grad": data, "x": data, "step_size": numbers, "radius": numbers}
    constants: dict[str, Constant] = {"EACH": form == "each", "STEEPEST": True}
    if form in ("none", "universal"):
        constants["bounds"] = None
    else:
        signature["bounds"] = numbers
    if form == "universal":
        signature["grad"], constants["x"] = numbers, None
        del signature["x"]
    return signature, constants


FLAT = {
    "total": "i64",
    "size": "i32",
    "step_stride": "i32",
    "radius_stride": "i32",
    "channels": "i32",
    "inner": "i32",
}
SAMPLE = {
    "units": "i32",
    "step_stride": "i32",
    "radius_stride": "i32",
    "channels": "i32",
    "inner": "i32",
}
SIZES = (784, 2048, 3072)  # of samples held in registers: as in MNIST and CIFAR, and between


def _linf() -> Iterator[Variant]:
    for dtype in FLOATS:
        tile = tiles.elementwise(BYTES[dtype])
        for form in ("none", "one", "each", "universal"):
            signature, constants = _arguments(dtype, form)
            yield Variant(
                f"step_linf.{dtype}.{form}",
                step_linf,
                signature | FLAT,
                constants | {"PER_SAMPLE": form == "each", "BLOCK": tile.block},
                tile.warps,
                divisible=pointers(signature),
                elements=tile.block,
            )


def _l2() -> Iterator[Variant]:
    for dtype in FLOATS:
        signature, constants = _arguments(dtype, "one")
        constants["UNIT"] = 16
        for size in SIZES:
            tile = tiles.sample(size, BYTES[dtype])
            yield Variant(
                f"step_l2.{dtype}.{size}",
                step_l2,
                signature | SAMPLE,
                constants | {"BLOCK": tile.block},
                tile.warps,
                divisible=pointers(signature),
            )
        yield _l2_long(dtype, tiles.FEW_SAMPLES, "one", "many")
        for form in ("one", "universal"):
            yield _moments(dtype, form)
            yield _l2_long(dtype, 1, form, "few" if form == "one" else form)


def _moments(dtype: str, form: str) -> Variant:
    tile = tiles.long_sample(1, LONG, BYTES[dtype]).tile
    signature, constants = _arguments(dtype, form)
    names = ("x_adv", "grad", "x")
    signature = {name: signature[name] for name in names if name in signature}
    constants = {name: constants[name] for name in names if name in constants}
    signature["shares"] = "*fp64"
    return Variant(
        f"moments_l2.{dtype}.{form}",
        moments_l2,
        signature | {"units": "i32", "share": "i32"},
        constants | {"UNIT": 16, "BLOCK": tile.block},
        tile.warps,
        divisible=pointers(signature),
    )


def _l2_long(dtype: str, samples: int, form: str, name: str) -> Variant:
    walk = tiles.long_sample(samples, LONG, BYTES[dtype])
    signature, constants = _arguments(dtype, form)
    if walk.parts == 1:
        constants["shares"] = None
    else:
        signature["shares"] = "*fp64"
    return Variant(
        f"step_l2_long.{dtype}.{name}",
        step_l2_long,
        signature | {"share": "i32"} | SAMPLE,
        constants | {"UNIT": 16, "PARTS": tiles.PARTS, "BLOCK": walk.tile.block},
        walk.tile.warps,
        divisible=pointers(signature),
    )


def _l1() -> Iterator[Variant]:
    for dtype in FLOATS:
        sizes = [size for size in SIZES if tiles.held(size, "l1", BYTES[dtype])]
        walk = tiles.long_search(BYTES[dtype])
        for size in sizes:
            tile = tiles.sample(size, BYTES[dtype])
            yield _l1_of(dtype, "one", str(size), step_l1, tile)
        yield _l1_of(dtype, "one", "long", step_l1_long, walk)
        yield _l1_of(dtype, "universal", "universal", step_l1_long, walk)


def _l1_of(dtype: str, form: str, name: str, kernel: Any, tile: tiles.Tile) -> Variant:
    signature, constants = _arguments(dtype, form)
    lowest = tiles.LOWEST[TORCH[signature["grad"][1:]]]
    return Variant(
        f"step_l1.{dtype}.{name}",
        kernel,
        signature | {"rank": "i32"} | SAMPLE,
        constants | {"UNIT": 16, "LOWEST": lowest, "BLOCK": tile.block},
        tile.warps,
        divisible=pointers(signature),
    )


def steps() -> Iterator[Variant]:
    """All of these."""
    for part in (_linf, _l2, _l1):
        yield from part()
