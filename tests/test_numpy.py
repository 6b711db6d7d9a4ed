"""fastadv.numpy: the bits of fastadv.ops, in place, without a copy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import seeded

import fastadv as fa
from fastadv import ops

DTYPES = (np.float32, np.float64, np.float16)
BALLS = (fa.Linf, fa.L2, fa.L1)
BOUNDS = (None, (0.0, 1.0), ((0.0, -0.1, 0.1), (1.0, 0.9, 1.1)))


def arrays(dtype: type, *shape: int) -> list[np.ndarray]:
    g = seeded(1)
    return [torch.randn(shape, generator=g).numpy().astype(dtype) for _ in range(3)]


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ball", BALLS)
def test_step_gives_the_bits_of_ops(ball: type[fa.Ball], dtype: type, bounds: object) -> None:
    for shape in ((4, 3, 5, 7), (4, 3)):
        x_adv, grad, x = arrays(dtype, *shape)
        wide = np.float64 if dtype is np.float64 else np.float32
        per_sample = np.linspace(0, 0.4, 4, dtype=wide)
        for size, radius in ((8 / 255, None), (per_sample, 0.1), (0.1, per_sample)):
            for steepest in (True, False):
                given = {"ball": ball(0.3, bounds), "steepest": steepest, "top": 0.2}
                tensors = [torch.from_numpy(a.copy()) for a in (x_adv, grad, x)]
                size_t, radius_t = (
                    torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in (size, radius)
                )
                expected = ops.step_(*tensors, step_size=size_t, radius=radius_t, **given)
                got = x_adv.copy()
                address = got.ctypes.data
                out = fa.numpy.step_(got, grad, x, step_size=size, radius=radius, **given)
                assert out is got
                assert got.ctypes.data == address
                np.testing.assert_array_equal(got, expected.numpy(), strict=True)
        before = x_adv.copy()
        b = ball(8 / 255, bounds)
        fa.numpy.project_(x_adv, x, ball=b)
        expected = b.project(torch.from_numpy(before), torch.from_numpy(x)).numpy()
        np.testing.assert_array_equal(x_adv, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ball", BALLS)
def test_universal_gives_the_bits_of_ops(ball: type[fa.Ball], dtype: type) -> None:
    delta, velocity, _ = (a[0] for a in arrays(dtype, 1, 3, 5))
    grads = arrays(dtype, 6, 3, 5)[0]
    wide = np.float64 if dtype is np.float64 else np.float32
    weights, velocity = np.linspace(0, 2, 6, dtype=wide), velocity.astype(wide)
    for more in ({}, {"signs": True}, {"steepest": False}, {"momentum": 0.9}):
        for weighted in (True, False):
            given = {"ball": ball(0.3), "step_size": 8 / 255, "top": 0.2, **more}
            moving = "momentum" in more
            w, v = weights if weighted else None, velocity.copy() if moving else None
            w_t, v_t = (None if a is None else torch.from_numpy(a.copy()) for a in (w, v))
            args = torch.from_numpy(delta.copy()), torch.from_numpy(grads)
            expected = ops.universal_(*args, weights=w_t, velocity=v_t, **given)
            got = delta.copy()
            assert fa.numpy.universal_(got, grads, weights=w, velocity=v, **given) is got
            np.testing.assert_array_equal(got, expected.numpy(), strict=True)
            if moving:
                np.testing.assert_array_equal(v, v_t.numpy())
                assert not np.array_equal(v, velocity)


def test_the_arguments_are_left_alone_and_empty_is_fine() -> None:
    x_adv, grad, x = arrays(np.float32, 4, 6)
    copies = grad.copy(), x.copy()
    grad.flags.writeable = x.flags.writeable = False
    fa.numpy.step_(x_adv, grad, x, ball=fa.L1(0.3, None), step_size=0.1)
    np.testing.assert_array_equal(grad, copies[0])
    np.testing.assert_array_equal(x, copies[1])
    for shape in ((0, 3), (2, 0), (2, 3, 0)):
        empty = np.empty(shape, np.float32)
        bounds = ((0, 0, 0), (1, 1, 1)) if len(shape) > 1 and shape[1] == 3 else None
        for ball in BALLS:
            fa.numpy.step_(empty, empty, empty, ball=ball(0.3, bounds), step_size=0.1)
            fa.numpy.universal_(empty[0] if len(empty) else np.empty(shape[1:], np.float32), empty,
                                ball=ball(0.3), step_size=0.1)  # fmt: skip


def frozen(a: np.ndarray) -> np.ndarray:
    a.flags.writeable = False
    return a


A = np.zeros((4, 6), np.float32)
STEPS = {
    "a list": ({"x_adv": [0.0]}, TypeError, "`x_adv` must be a numpy array, got list"),
    "integers": ({"x_adv": A.astype(int)}, TypeError, "`x_adv` must be float32, float64 or float1"),
    "byte order": ({"x_adv": A.astype(">f4")}, TypeError, "`x_adv` must be float32"),
    "a scalar": ({"x_adv": np.zeros((), np.float32)}, ValueError, r"`x_adv` must be \(N, \*shape"),
    "not contiguous": ({"x_adv": A.T.copy().T}, ValueError, "`x_adv` must be C-contiguous"),
    "read only": ({"x_adv": frozen(A.copy())}, ValueError, "`x_adv` .* must be writeable"),
    "grad": ({"grad": A[:2]}, ValueError, r"`grad` must be \(4, 6\) like `x_adv`, got \(2, 6\)"),
    "x": ({"x": A.astype(np.float64)}, TypeError, "`x` must be float32, got float64"),
    "x strided": ({"x": np.zeros((4, 12), np.float32)[:, ::2]}, ValueError, "`x` must be C-contig"),
    "radius": ({"radius": np.ones(3)}, ValueError, r"`radius` must be a number or \(4,\)"),
    "radius below 0": ({"radius": -1.0}, ValueError, "`radius` must be at least 0"),
    "radius NaN": ({"radius": math.nan}, ValueError, "`radius` must be at least 0"),
    "step_size text": ({"step_size": "a"}, TypeError, "`step_size` must be a number"),
    "step_size inf": ({"step_size": math.inf}, ValueError, "`step_size` must be finite"),
    "channels": ({"ball": fa.L2(1, ((0, 0), (1, 1)))}, ValueError, "`bounds` are given for 2 chan"),
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
def test_mistakes_are_named_and_change_nothing(name: str) -> None:
    changed, error, words = STEPS[name]
    given = {"x_adv": A.copy(), "grad": A + 1, "x": A, "ball": fa.Linf(0.1), "step_size": 0.1}
    given |= changed
    x_adv = given.pop("x_adv")
    before = np.array(x_adv)
    with pytest.raises(error, match=words):
        fa.numpy.step_(x_adv, given.pop("grad"), given.pop("x"), **given)
    np.testing.assert_array_equal(np.array(x_adv), before)


UNIVERSAL = {
    "delta": ({"delta": np.zeros(5, np.float32)}, ValueError, r"`delta` must be \(6,\)"),
    "delta dtype": ({"delta": np.zeros(6)}, TypeError, "`delta` must be float32, got float64"),
    "weights": ({"weights": np.ones(3, np.float32)}, ValueError, r"`weights` must be \(4,\)"),
    "weights dtype": ({"weights": np.ones(4)}, TypeError, "`weights` must be float32, got float64"),
    "velocity": ({"velocity": np.ones(3, np.float32)}, ValueError, r"`velocity` must be \(6,\)"),
    "velocity frozen": (
        {"velocity": frozen(np.ones(6, np.float32))}, ValueError, "`velocity` .* must be writeable",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNIVERSAL)
def test_universal_mistakes(name: str) -> None:
    changed, error, words = UNIVERSAL[name]
    given = {"delta": np.zeros(6, np.float32), "ball": fa.Linf(0.1), "step_size": 0.1} | changed
    delta = given.pop("delta")
    with pytest.raises(error, match=words):
        fa.numpy.universal_(delta, A + 1, **given)
    assert not delta.any()


def test_radii_as_numbers_are_rounded_down_whenever_they_come() -> None:
    """Kept arrays are those of their dtype: the same number in turn for float64 and float32."""
    zero = [np.zeros((1, 4), dtype) for dtype in (np.float32, np.float64, np.float16)]
    for _ in range(2):
        for x in zero:
            got = fa.numpy.step_(
                x.copy(), x + 1, x, ball=fa.Linf(8 / 255, (-1, 1)), step_size=1,
            )  # fmt: skip
            assert (got.astype(np.float64) <= 8 / 255).all()
            assert (got.astype(np.float64) > 0.999 * 8 / 255).all()
    for bad in (True, "1", None, 1j):
        with pytest.raises(TypeError, match="`step_size` must be a number"):
            fa.numpy.step_(zero[0], zero[0], zero[0], ball=fa.Linf(1), step_size=bad)
