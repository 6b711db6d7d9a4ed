"""Arithmetic that rounds once, in the direction that an instruction names.

A sum's rounding error is a number of its own (Knuth's TwoSum), and a product of two float32 is
exact in float64, so the exact result's side of the rounded one is known, and with it every
direction. Where a result passes through float64 on its way to a narrower type, it is first rounded
to odd there: then the second rounding gives what one rounding would (Boldo and Melquiond 2008).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.emulator.ptx.types import UNSIGNED, Array, Type

MODES = ("rn", "rz", "rm", "rp")


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """fl(a + b) and its rounding error, exact unless it overflows."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """fl(a * b) and its rounding error in float64, by Dekker's halves."""
    product = a * b
    halves = []
    for v in (a, b):
        far = v * 134217729.0  # 2^27 + 1
        high = far - (far - v)
        halves.append((high, v - high))
    (ah, al), (bh, bl) = halves
    return product, ((ah * bh - product) + ah * bl + al * bh) + al * bl


def odd(nearest: Array, error: Array) -> Array:
    """nearest + error rounded to odd: an inexact result has its last bit set."""
    even = encode_bits(nearest) & 1 == 0
    towards = np.where(error > 0, np.inf, -np.inf).astype(nearest.dtype)
    moves = (error != 0) & even & np.isfinite(nearest) & np.isfinite(error)
    return np.where(moves, np.nextafter(nearest, towards), nearest)


def encode_bits(v: Array) -> Array:
    return np.asarray(v).view(UNSIGNED[np.asarray(v).dtype.itemsize])


def directed(nearest: Array, error: Array, mode: str, finite: Array) -> Array:
    """The result in `mode`, of the nearest one and the sign of (exact - nearest)."""
    if mode == "rn":
        return nearest
    most = np.finfo(nearest.dtype).max
    low, high = (nearest.dtype.type(v) for v in (-np.inf, np.inf))
    down = np.where(error < 0, np.nextafter(nearest, low), nearest)
    up = np.where(error > 0, np.nextafter(nearest, high), nearest)
    down = np.where(finite & (nearest == high), most, np.where(np.isinf(nearest), nearest, down))
    up = np.where(finite & (nearest == low), -most, np.where(np.isinf(nearest), nearest, up))
    if mode == "rz":
        return np.where(np.signbit(nearest), up, down)
    return down if mode == "rm" else up


def _directed_zero(result: Array, mode: str, positive: Array) -> Array:
    """An exact sum of zero is -0 where rounding is down, unless both terms were +0."""
    if mode != "rm":
        return result
    return np.where((result == 0) & ~positive, -np.abs(result), result)


def add(a: Array, b: Array, mode: str) -> Array:
    if mode == "rn":
        return a + b
    total, error = two_sum(a, b)
    result = directed(total, error, mode, np.isfinite(a) & np.isfinite(b))
    both = (a == 0) & (b == 0) & ~np.signbit(a) & ~np.signbit(b)
    return _directed_zero(result, mode, both)


def multiply(a: Array, b: Array, mode: str) -> Array:
    if mode == "rn":
        return a * b
    exact = _widened(a) * _widened(b)
    product = a * b
    return directed(product, exact - product, mode, np.isfinite(a) & np.isfinite(b))


def _widened(v: Array) -> Array:
    if v.dtype == np.float64:
        raise NotImplementedError("directed rounding of a float64 product")
    return v.astype(np.float64)


def fma(a: Array, b: Array, c: Array, kind: Type, mode: str) -> Array:
    """a * b + c, rounded once."""
    if kind.name == "f64":
        if mode != "rn":
            raise NotImplementedError("directed rounding of a float64 fma")
        return _fma64(a, b, c)
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total, error = two_sum(product, addend)
    error = np.where(np.isfinite(total), error, 0)
    result = narrow(odd(total, error), kind, mode)
    positive = (addend == 0) & ~np.signbit(addend) & (product == 0) & ~np.signbit(product)
    return _directed_zero(result, mode, positive)


def _fma64(a: Array, b: Array, c: Array) -> Array:
    """Boldo and Melquiond's: exact product, exact sums, one rounding to odd in between."""
    high, low = two_product(a, b)
    part, least = two_sum(c, low)
    top, middle = two_sum(high, part)
    result = top + odd(*two_sum(least, middle))
    return np.where(np.isfinite(result), result, a * b + c)


def narrow(v: Array, kind: Type, mode: str = "rn") -> Array:
    """Numbers of float64 or float32 rounded once to a float type, as its numbers."""
    if kind.name in ("bf16", "tf32"):
        return _shortened(v, 16 if kind.name == "bf16" else 13, mode)
    nearest = v.astype(kind.number)
    if mode == "rn" or nearest.dtype == v.dtype:
        return nearest
    error = v - nearest.astype(v.dtype)
    return directed(nearest, error, mode, np.isfinite(v))


def _shortened(v: Array, dropped: int, mode: str) -> Array:
    """Float32 numbers without their last `dropped` bits; "rna" takes ties away from zero."""
    exact = v
    v = v.astype(np.float32)
    if exact.dtype == np.float64:
        v = odd(v, np.where(np.isfinite(v), exact - v, 0).astype(np.float64))
    bits = v.view(np.uint32)
    last = np.uint32(1 << dropped)
    below, half = last - np.uint32(1), np.uint32(1 << (dropped - 1))
    tie = (bits >> np.uint32(dropped)) & np.uint32(1)
    negative = np.signbit(v)
    added: dict[str, Any] = {
        "rn": half - np.uint32(1) + tie,
        "rna": half,
        "rz": np.uint32(0),
        "rm": np.where(negative, below, np.uint32(0)),
        "rp": np.where(negative, np.uint32(0), below),
    }
    rounded = (bits + added[mode]) & ~below
    return np.where(np.isnan(v), np.uint32(0x7FFF0000), rounded).astype(np.uint32).view(np.float32)


def flushed(v: Array) -> Array:
    """Subnormal float32 as zeros of their sign: .ftz."""
    tiny = np.abs(v) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), v), v)


def flushing(function: Callable[..., Array], on: bool) -> Callable[..., Array]:
    """`function` between flushed arguments and a flushed result, where `on`."""
    if not on:
        return function
    return lambda *v: flushed(function(*(flushed(np.asarray(u)) for u in v)))
