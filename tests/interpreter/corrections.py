"""bfloat16 as devices have it, in Triton's interpreter.

The interpreter keeps bfloat16 as bits. Its casts from float32 truncate, where devices round to
nearest, ties to even; its arithmetic and its matrix product take the bits for numbers. Here each is
computed in float32 and rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def widened(bits: np.ndarray) -> np.ndarray:
    """The float32 numbers of bfloat16's bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(numbers: np.ndarray) -> np.ndarray:
    """bfloat16's bits of float32 numbers: to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    nearest = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(numbers), np.uint16(0x7FC0), nearest).astype(np.uint16)


def _is_bfloat16(handle_or_type: Any) -> bool:
    return bool(handle_or_type.scalar == tl.bfloat16)


def _wide(handle: TensorHandle) -> TensorHandle:
    is_narrow = _is_bfloat16(handle.dtype)
    return TensorHandle(widened(handle.data), tl.float32) if is_narrow else handle


def install() -> None:
    """Corrects this process's interpreter."""
    plain: dict[str, Callable[..., Any]] = {
        name: getattr(InterpreterBuilder, name)
        for name in ("cast_impl", "create_fp_to_fp", "create_dot", "binary_op")
    }

    def cast(self: Any, source: TensorHandle, to: Any) -> TensorHandle:
        if _is_bfloat16(to) and not _is_bfloat16(source.dtype):
            return TensorHandle(rounded(source.data.astype(np.float32)), tl.bfloat16)
        return plain["cast_impl"](self, source if _is_bfloat16(to) else _wide(source), to)

    def convert(self: Any, source: TensorHandle, to: Any, rounding: Any) -> TensorHandle:
        if _is_bfloat16(source.dtype) != _is_bfloat16(to):
            return cast(self, source, to)
        return plain["create_fp_to_fp"](self, source, to, rounding)

    def dot(self: Any, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return plain["create_dot"](self, _wide(a), _wide(b), *rest)

    def binary(self: Any, a: TensorHandle, b: TensorHandle, op: Callable[..., Any]) -> TensorHandle:
        if not _is_bfloat16(a.dtype):
            return plain["binary_op"](self, a, b, op)
        result = op(widened(a.data), widened(b.data))
        if result.dtype == bool:
            return TensorHandle(result, tl.int1)
        return TensorHandle(rounded(result), tl.bfloat16)

    InterpreterBuilder.cast_impl = cast
    InterpreterBuilder.create_fp_to_fp = convert
    InterpreterBuilder.create_dot = dot
    InterpreterBuilder.binary_op = binary
