"""The variants of the heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastadv.kernels import tiles
from fastadv.kernels.head_margins import binary_cross_entropy, dlr, margin
from fastadv.kernels.head_probabilities import cross_entropy, kl
from fastadv.kernels.variant import BYTES, FLOATS, Constant, Variant, pointers, wide

CLASSES = (10, 1000, 4096, 8192, 32768)


def heads() -> Iterator[Variant]:
    """Of each dtype and number of classes."""
    for dtype in FLOATS:
        for classes in CLASSES:
            for kernel in (cross_entropy, binary_cross_entropy, margin, kl, dlr):
                yield _head(dtype, classes, kernel, False)
            yield _head(dtype, classes, dlr, True)


def _head(dtype: str, classes: int, kernel: Any, aimed: bool) -> Variant:
    data, numbers = f"*{dtype}", f"*{wide(dtype)}"
    tile = tiles.head(classes, BYTES[dtype])
    if kernel is binary_cross_entropy:
        tile = tiles.labels_head(classes, BYTES[dtype])
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
    if kernel in (cross_entropy, kl):
        constants["LONG"] = tile.long
    return Variant(
        f"{kernel.__name__}{'_targeted' if aimed else ''}.{dtype}.{classes}",
        kernel,
        signature | rest,
        constants,
        tile.warps,
        divisible=pointers(signature),
    )
