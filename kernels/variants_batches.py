"""The variants of the sums over a batch, of uniform and of digest."""

from __future__ import annotations

from collections.abc import Iterator

from fastadv.kernels import tiles
from fastadv.kernels.accumulate import accumulate, advance, combine
from fastadv.kernels.digest import digest_kernel
from fastadv.kernels.uniform import uniform_kernel
from fastadv.kernels.variant import BYTES, FLOATS, LONG, Constant, Variant, pointers, wide


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
                divisible=pointers(signature),
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
                divisible=pointers(signature),
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
            divisible=pointers(plain),
            elements=tile.block,
        )
        yield Variant(
            f"combine.{dtype}.lengths",
            combine,
            signature | {"parts": "i32"} | units,
            whole,
            tile.warps,
            divisible=pointers(signature),
            elements=tile.block,
        )
        signature = {"velocity": data, "direction": data, "lengths": "*fp64"}
        yield Variant(
            f"advance.{dtype}",
            advance,
            signature | {"momentum": "fp64", "programs": "i32"} | units,
            whole,
            tile.warps,
            divisible=pointers(signature),
            elements=tile.block,
        )


def batches() -> Iterator[Variant]:
    """All of these."""
    for part in (_universal, _uniform, _digest):
        yield from part()
