"""The updates on NumPy arrays, in place and without a copy: for libraries that hold arrays.

The same kernels as fastadv.ops, on the same threads. Arrays are C-contiguous float32, float64 or
float16. Without compiled kernels the reference serves, through
torch tensors that share the arrays' memory.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fastadv import _checks, ops
from fastadv.balls import Ball, Bounds

DType = np.dtype[Any]
Array = np.ndarray[Any, DType]

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_NORMS = {"linf": 0, "l2": 1, "l1": 2}


def step_(
    x_adv: Array,  # (N, *shape)
    grad: Array,  # (N, *shape)
    x: Array,  # (N, *shape)
    *,
    ball: Ball,
    step_size: float | Array,  # () or (N,)
    radius: float | Array | None = None,  # () or (N,)
    steepest: bool = True,
    top: float = 0.05,
) -> Array:
    """One ascent step in place: see fastadv.ops.step_. Returns x_adv.

    Raises TypeError or ValueError, with x_adv unchanged, on any mismatch.
    """
    _check(x_adv, "x_adv")
    _check_like(grad, "grad", x_adv, "x_adv")
    _check_like(x, "x", x_adv, "x_adv")
    r = ball.radius if radius is None else radius
    if not ops.backend().is_native:
        tensors = (_tensor(a) for a in (x_adv, grad, x))
        ops.step_(
            *tensors, ball=ball, step_size=_plain(step_size), radius=_plain(r), steepest=steepest,
            top=top,
        )  # fmt: skip
        return x_adv
    from fastadv import _native

    size = _per_sample(step_size, x_adv, "step_size")
    limit = _per_sample(r, x_adv, "radius", round_down=True)
    bounds = _bounds(ball, x_adv)
    if x_adv.size:
        norm = _NORMS[ball.order]
        _native.step_(norm, x_adv, grad, x, size, limit, bounds, steepest, top)
    return x_adv


def universal_(
    delta: Array,  # (*shape)
    grads: Array,  # (N, *shape)
    *,
    ball: Ball,
    step_size: float,
    weights: Array | None = None,  # (N,)
    velocity: Array | None = None,  # (*shape)
    momentum: float = 0.0,
    signs: bool = False,
    steepest: bool = True,
    top: float = 0.05,
) -> Array:
    """One universal ascent step in place: see fastadv.ops.universal_. Returns delta.

    weights and velocity are float64 for float64 gradients, float32 for others.
    Raises TypeError or ValueError, with delta unchanged, on any mismatch.
    """
    _check_universal(delta, grads, weights, velocity)
    if not ops.backend().is_native:
        w, v = (None if a is None else _tensor(a) for a in (weights, velocity))
        ops.universal_(
            _tensor(delta), _tensor(grads), ball=ball, step_size=step_size,
            weights=w, velocity=v, momentum=momentum, signs=signs, steepest=steepest, top=top,
        )  # fmt: skip
        return delta
    from fastadv import _native

    size = _per_sample(step_size, grads[:1], "step_size")
    radius = _per_sample(ball.radius, grads[:1], "radius", round_down=True)
    if grads.size:
        _native.universal_(
            _NORMS[ball.order], delta, velocity, grads,
            None if weights is None else np.ascontiguousarray(weights), size, radius, momentum,
            signs, steepest, top,
        )  # fmt: skip
    return delta


def _check_universal(
    delta: Array, grads: Array, weights: Array | None, velocity: Array | None
) -> None:
    _check(grads, "grads")
    _check(delta, "delta")
    wide = _wide(grads)
    _expect(delta, "delta", grads.shape[1:], grads.dtype, "grads[0]")
    if weights is not None:
        _expect(weights, "weights", grads.shape[:1], wide, "len(grads)")
    if velocity is not None:
        _check(velocity, "velocity")
        _expect(velocity, "velocity", delta.shape, wide, "delta")


def project_(x_adv: Array, x: Array, *, ball: Ball, radius: float | Array | None = None) -> Array:
    """x_adv <- its projection onto the ball around x and the box, in place. Returns x_adv."""
    return step_(x_adv, x, x, ball=ball, step_size=0.0, radius=radius, steepest=False)


def _check(a: object, name: str) -> None:
    if not isinstance(a, np.ndarray):
        raise TypeError(f"`{name}` must be a numpy array, got {type(a).__name__}")
    if a.dtype.char not in "fde" or not a.dtype.isnative:  # (== with three types takes 2 us)
        raise TypeError(f"`{name}` must be float32, float64 or float16, got {a.dtype}")
    if not a.flags.c_contiguous:
        raise ValueError(f"`{name}` must be C-contiguous, got strides {a.strides}")
    if not a.flags.writeable and name in ("x_adv", "delta", "velocity"):
        raise ValueError(f"`{name}` is updated in place and must be writeable")
    if a.ndim < 1 and name in ("x_adv", "grads"):
        raise ValueError(f"`{name}` must be (N, *shape), got a scalar")


def _check_like(a: object, name: str, other: Array, other_name: str) -> None:
    _check(a, name)
    assert isinstance(a, np.ndarray)
    _expect(a, name, other.shape, other.dtype, other_name)


def _expect(a: Array, name: str, shape: tuple[int, ...], dtype: DType, like: str) -> None:
    if a.shape != shape:
        raise ValueError(f"`{name}` must be {shape} like `{like}`, got {a.shape}")
    if a.dtype != dtype:
        raise TypeError(f"`{name}` must be {dtype}, got {a.dtype}")


def _per_sample(value: float | Array, x: Array, name: str, round_down: bool = False) -> Array:
    """() or (N,) in the compute dtype; see fastadv.ops.per_sample."""
    wide = _wide(x)
    if type(value) is float or type(value) is int:
        _checks.length(value, name)
        return _number(value, wide, round_down)
    given = np.asarray(value)
    if given.dtype.kind not in "fiu":
        raise TypeError(f"`{name}` must be a number or an array of them, got {value!r}")
    if not isinstance(value, np.ndarray):
        _checks.length(float(value), name)
    if given.shape not in ((), (1,), (len(x),)):
        raise ValueError(
            f"`{name}` must be a number or ({len(x)},), one a sample, got {given.shape}"
        )
    return _rounded(given, wide, round_down)


@lru_cache(maxsize=1024)  # a loop's constants
def _number(value: float, wide: DType, round_down: bool) -> Array:
    return _rounded(np.array(value, dtype=np.float64), wide, round_down)


def _rounded(given: Array, wide: DType, round_down: bool) -> Array:
    rounded = np.ascontiguousarray(given, dtype=wide)
    if round_down and wide is _FLOAT32 and given.dtype == np.float64:
        below = np.nextafter(rounded, np.float32(-np.inf))
        rounded = np.where(rounded.astype(np.float64) > given, below, rounded)
    return rounded


def _bounds(ball: Ball, x: Array) -> Array | None:
    if ball.bounds is None:
        return None
    ball.check_channels(x.shape)
    return _box(ball.bounds, _wide(x))


@lru_cache(maxsize=64)
def _box(bounds: Bounds, wide: DType) -> Array:
    return np.array(bounds, dtype=wide)


def _wide(x: Array) -> DType:
    """The compute dtype."""
    return _FLOAT64 if x.dtype.char == "d" else _FLOAT32


def _plain(value: float | Array) -> float | torch.Tensor:
    return _tensor(value) if isinstance(value, np.ndarray) else value


def _tensor(a: Array) -> torch.Tensor:
    """A tensor on a's memory; on a copy where that is read only, which torch cannot express."""
    return torch.from_numpy(a if a.flags.writeable else a.copy())
