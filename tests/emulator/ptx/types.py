"""PTX's types: their widths, and bits to numbers and back.

Registers hold bits, as unsigned integers of their width; instructions say what these mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SIGNED: dict[int, Any] = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
_FLOATS: dict[str, Any] = {"f16": np.float16, "f32": np.float32, "f64": np.float64}
PACKED = {"f16x2": "f16", "bf16x2": "bf16", "f32x2": "f32", "s16x2": "s16", "u16x2": "u16"}


@dataclass(frozen=True)
class Type:
    """name: as PTX writes it. number: what numpy computes with (for bf16 float32)."""

    name: str
    size: int
    number: Any

    @property
    def is_float(self) -> bool:
        return "f" in self.name  # packed ones too

    @property
    def is_signed(self) -> bool:
        return self.name[0] == "s"


def _types() -> dict[str, Type]:
    found = {name: Type(name, np.dtype(t).itemsize, t) for name, t in _FLOATS.items()}
    for size, unsigned in UNSIGNED.items():
        found[f"u{8 * size}"] = Type(f"u{8 * size}", size, unsigned)
        found[f"b{8 * size}"] = Type(f"b{8 * size}", size, unsigned)
        found[f"s{8 * size}"] = Type(f"s{8 * size}", size, SIGNED[size])
    found["bf16"] = Type("bf16", 2, np.float32)
    found["tf32"] = Type("tf32", 4, np.float32)
    found["pred"] = Type("pred", 1, np.bool_)
    for packed, part in PACKED.items():
        found[packed] = Type(packed, 2 * found[part].size, UNSIGNED[2 * found[part].size])
    return found


TYPES = _types()


def decode(bits: Array, kind: Type) -> Array:
    """Bits of a type's width as numbers."""
    if kind.name == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits if kind.name == "pred" else bits.view(kind.number)


def encode(numbers: Array, kind: Type) -> Array:
    """Numbers, already representable in the type, as bits."""
    if kind.name == "pred":
        return numbers
    if kind.name == "bf16":
        return (numbers.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return numbers.view(UNSIGNED[kind.size])


def unpack(bits: Array, kind: Type) -> tuple[Array, Array]:
    """The low and the high half of a packed pair, as numbers."""
    part = TYPES[PACKED[kind.name]]
    half = UNSIGNED[part.size]
    shift = bits.dtype.type(8 * part.size)
    return decode(bits.astype(half), part), decode((bits >> shift).astype(half), part)


def pack(low: Array, high: Array, kind: Type) -> Array:
    """Two halves as the bits of a packed pair."""
    part = TYPES[PACKED[kind.name]]
    whole = UNSIGNED[kind.size]
    shift = whole(8 * part.size)
    low, high = (encode(v, part).astype(whole) for v in (low, high))
    return np.asarray(low | (high << shift))


def pairwise(function: Callable[..., Array], kind: Type) -> Callable[..., Array]:
    """`function` on the halves of packed pairs."""

    def packed(*bits: Array) -> Array:
        halves = [unpack(b, kind) for b in bits]
        return pack(function(*(h[0] for h in halves)), function(*(h[1] for h in halves)), kind)

    return packed
