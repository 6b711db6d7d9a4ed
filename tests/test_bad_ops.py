"""Each mistake in a call of an op gets its error, and nothing is changed."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tolerance import bits
from torch import Tensor

import fastadv as fa
from fastadv import ops

LINF, X = fa.Linf(0.1), torch.rand(5, 6, generator=torch.Generator().manual_seed(1))
NAN, INF = math.nan, math.inf
Make = Callable[[], object]


def step(**changed: object) -> tuple[Tensor, Make]:
    """x_adv and a step of it with one argument changed."""
    x_adv = changed.pop("x_adv", X.clone())
    given = {"grad": X, "x": X, "ball": LINF, "step_size": 0.1} | changed
    return x_adv, lambda: ops.step_(x_adv, **given)


def universal(**changed: object) -> tuple[Tensor, Make]:
    delta = changed.pop("delta", torch.zeros(6))
    given = {"grads": X, "ball": LINF, "step_size": 0.1} | changed
    return delta, lambda: ops.universal_(delta, **given)


OPS: dict[str, tuple[tuple[Tensor, Make], type[Exception], str]] = {
    "grad": (step(grad=X[:, :1]), ValueError, r"`grad` must be \(5, 6\) like `x_adv`, got \(5, 1"),
    "grad dtype": (step(grad=X.half()), TypeError, "`grad` must be float32 like `x_adv`, got floa"),
    "x": (step(x=X[:1]), ValueError, r"`x` must be \(5, 6\) like `x_adv`, got \(1, 6\)"),
    "x an array": (step(x=X.numpy()), TypeError, "`x` must be a torch.Tensor, got ndarray"),
    "x device": (step(x=X.to("meta")), ValueError, "`x` must be on cpu like `x_adv`, got meta"),
    "x_adv requires grad": (
        step(x_adv=X.clone().requires_grad_()), ValueError, "`x_adv` .* must not require grad",
    ),
    "x_adv expanded": (
        step(x_adv=X[:1].expand(5, 6)), ValueError, "`x_adv` .* must not be expanded",
    ),
    "x_adv is x": (step(x_adv=X), ValueError, "`x_adv` .* must not be `x` or `grad`"),
    "x_adv of integers": (step(x_adv=X.long()), TypeError, "`x_adv` must be float32"),
    "step_size": (step(step_size=torch.ones(4)), ValueError, r"`step_size` must be .*\(5,\)"),
    "step_size NaN": (step(step_size=NAN), ValueError, "`step_size` must be finite, got nan"),
    "step_size inf": (step(step_size=INF), ValueError, "`step_size` must be finite, got inf"),
    "radius below 0": (step(radius=-1.0), ValueError, "`radius` must be at least 0, got -1"),
    "radius NaN": (step(radius=NAN), ValueError, "`radius` must be at least 0, got nan"),
    "radius none": (step(radius="r"), TypeError, "`radius` must be a number or a tensor, got str"),
    "channels": (step(ball=fa.L2(1, ((0,), (1,)))), ValueError, "`bounds` are given for 1 channel"),
    "delta": (universal(delta=torch.zeros(5)), ValueError, r"`delta` must be \(6,\) like `grads"),
    "delta dtype": (universal(delta=torch.zeros(6).double()), TypeError, "`delta` must be float32"),
    "delta requires grad": (
        universal(delta=torch.zeros(6, requires_grad=True)), ValueError, "`delta` .* require grad",
    ),
    "weights": (universal(weights=torch.ones(4)), ValueError, r"`weights` must be \(5,\)"),
    "weights dtype": (universal(weights=torch.ones(5).double()), TypeError, "`weights` must be fl"),
    "velocity": (universal(velocity=torch.ones(2)), ValueError, r"`velocity` must be \(6,\) like"),
    "velocity strided": (
        universal(velocity=torch.ones(12)[::2]), ValueError, "`velocity` .* must be contiguous",
    ),
    "grads": (universal(grads=X.int()), TypeError, "`grads` must be float32"),
}  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_ops_refuse_and_change_nothing(name: str) -> None:
    (target, run), error, words = OPS[name]
    before = bits(target.detach()).clone() if target.is_floating_point() else target.clone()
    with pytest.raises(error, match=words):
        run()
    after = bits(target.detach()) if target.is_floating_point() else target
    assert torch.equal(after, before)


def test_the_ops_themselves_keep_inside_their_memory() -> None:
    """torch.ops.fastadv.* checks shapes, dtypes and formats where compiled kernels serve."""
    if not ops.backend().is_native:
        pytest.skip("the reference serves the ops")
    call, number = torch.ops.fastadv.step_linf_, torch.tensor(0.1)
    x = torch.rand(2, 3, 4, 4)
    last = x.contiguous(memory_format=torch.channels_last)
    good = [x.clone(), x, x, number, number, None, True]
    bad = [
        (0, x.permute(0, 2, 3, 1), "`x_adv` must be contiguous"), (0, x[0, 0, 0, 0], "batch dimen"),
        (1, x[:1], "`grad` must be"), (1, last, "`grad` must have the memory format"),
        (2, x.double(), "`x` must have the dtype"), (3, number.double(), "`step_size` must be flo"),
        (3, torch.ones(3), "`step_size` must be"), (4, torch.ones(2, 1), "`radius` must be"),
        (5, torch.zeros(3), "`bounds` must be"), (5, torch.zeros(2, 2), "`bounds` must be"),
        (5, torch.zeros(2).double(), "`bounds` must be"),
    ]  # fmt: skip
    for place, argument, words in bad:
        args = [argument if i == place else a for i, a in enumerate(good)]
        with pytest.raises(RuntimeError, match=words):
            call(*args)


@pytest.mark.parametrize("order", ["linf", "l2", "l1"])
def test_what_is_updated_shares_no_memory_with_what_is_read(order: str) -> None:
    """Through any view; the reference works out of place, and needs no such care."""
    if not ops.backend().is_native:
        pytest.skip("the reference serves the ops")
    store = torch.rand(12, 6, generator=torch.Generator().manual_seed(2))
    before, ball = store.clone(), {"linf": fa.Linf, "l2": fa.L2, "l1": fa.L1}[order](0.1)
    x_adv = store[3:8]
    for shared in (store[3:8], store[:5], store[6:11]):
        for names in ({"grad": shared, "x": X}, {"grad": X, "x": shared}):
            with pytest.raises(RuntimeError, match=r"`x_adv` .* no memory with `(grad|x)`"):
                ops.step_(x_adv, **names, ball=ball, step_size=0.1)
            arrays = {name: t.numpy() for name, t in names.items()}
            with pytest.raises(ValueError, match="must share no memory"):
                fa.numpy.step_(x_adv.numpy(), **arrays, ball=ball, step_size=0.1)
    for given, words in (
        ({"delta": store[4], "grads": store[2:6]}, "`delta` .* with `grads`"),
        ({"delta": torch.zeros(6), "grads": store, "velocity": store[2]}, "`velocity` .* `grads`"),
        ({"delta": store[1], "grads": X, "velocity": store[1].view(6)}, "`velocity` .* `delta`"),
    ):
        with pytest.raises(RuntimeError, match=words):
            ops.universal_(**given, ball=ball, step_size=0.1)
        arrays = {name: t.numpy() for name, t in given.items()}
        with pytest.raises(ValueError, match="must share no memory"):
            fa.numpy.universal_(**arrays, ball=ball, step_size=0.1)
    assert torch.equal(store, before)
    ops.step_(x_adv, store[:3].new_zeros(5, 6), X, ball=ball, step_size=0.1)
    ops.step_(store[3:6], store[:3], store[6:9], ball=ball, step_size=0.1)  # neighbours are apart
