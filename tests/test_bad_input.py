"""Each mistake gets its error, naming the argument, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from conftest import seeded, smooth_net
from torch import Tensor

import fastadv as fa

LINF = fa.Linf(0.1)
NAN, INF = math.nan, math.inf
Make = Callable[[], object]

VALUES: dict[str, tuple[Make, type[Exception], str]] = {
    "radius below 0": (lambda: fa.Linf(-1), ValueError, "`radius` must be at least 0, got -1"),
    "radius NaN": (lambda: fa.L2(NAN), ValueError, "`radius` must be at least 0, got nan"),
    "radius a string": (lambda: fa.L1("8/255"), TypeError, "`radius` must be a number, got str"),
    "radius a bool": (lambda: fa.L1(True), TypeError, "`radius` must be a number, got bool"),
    "one bound": (lambda: fa.Linf(1, 1.0), ValueError, "`bounds` must be .lower, upper. or None"),
    "bounds turned": (lambda: fa.Linf(1, (1, 0)), ValueError, "`bounds` must have lower < upper"),
    "bounds NaN": (lambda: fa.Linf(1, (NAN, 1)), ValueError, "`bounds` must have lower < upper"),
    "bounds text": (lambda: fa.Linf(1, ("a", 1)), TypeError, "`bounds` must be a number, got str"),
    "bounds unlike": (
        lambda: fa.Linf(1, ((0, 0), (1, 1, 1))), ValueError, "as many lower as upper values",
    ),
    "ball": (lambda: fa.Attack(0.1, fa.Steepest(0.1)), TypeError, "`ball` must be Linf, L2 or L1"),
    "rule": (lambda: fa.Attack(LINF, 0.1), TypeError, "`rule` must be a step rule, got float"),
    "start": (lambda: fa.pgd(LINF, start="x"), ValueError, "`start` must be one of .* got 'x'"),
    "stop": (lambda: fa.pgd(LINF, stop="soon"), ValueError, "`stop` must be one of .* got 'soon'"),
    "mode": (lambda: fa.pgd(LINF, mode="test"), ValueError, "`mode` must be one of .* got 'test'"),
    "stop in train mode": (
        lambda: fa.pgd(LINF, stop="fooled", mode="train"), ValueError, "`stop` .* needs mode='eval",
    ),
    "apgd in l1": (lambda: fa.apgd(fa.L1(1)), ValueError, "`ball` must be Linf or L2 for apgd"),
    "no step size": (lambda: fa.Steepest(()), ValueError, "`step_size` must be a number"),
    "top": (lambda: fa.Steepest(0.1, top=0), ValueError, r"`top` must be in \(0, 1\], got 0"),
    "decay": (lambda: fa.Momentum(0.1, -1), ValueError, "`decay` must be finite and at least 0"),
    "betas": (lambda: fa.Adam(0.1, (1.0, 0.9)), ValueError, r"`betas` must be in \[0, 1\), got 1"),
    "one beta": (lambda: fa.Adam(0.1, 0.9), ValueError, "`betas` must be two numbers, got 0.9"),
    "epsilon": (lambda: fa.Adam(0.1, epsilon=0), ValueError, "`epsilon` must be finite and pos"),
    "rho": (lambda: fa.apgd(LINF, rho=2.0), ValueError, r"`rho` must be in \[0, 1\], got 2.0"),
    "restarts from x": (
        lambda: fa.bim(LINF, restarts=2), ValueError, "`restarts` needs start='uniform'.*s=2",
    ),
    "step for steps": (
        lambda: fa.fgsm(LINF, step=1), TypeError, "`step` is no option .* did you mean `steps`",
    ),
    "stepsize": (lambda: fa.pgd(LINF, stepsize=1), TypeError, "did you mean `step_size`"),
    "eps": (lambda: fa.apgd(LINF, eps=1), TypeError, "`eps` is no option .* there are objective"),
    "std": (lambda: fa.normalized(abs, [0.5], [0.0]), ValueError, "`std` must be positive"),
    "mean and std": (lambda: fa.normalized(abs, [0.5], [1, 2]), ValueError, "`std` must have 1"),
}  # fmt: skip
for bad in (-1, 2.5, 2.0, NAN, INF, "10", None):
    VALUES[f"steps {bad}"] = (
        lambda bad=bad: fa.pgd(LINF, steps=bad),
        ValueError, "`steps` must be a whole number from 0, got",
    )  # fmt: skip
    VALUES[f"restarts {bad}"] = (
        lambda bad=bad: fa.pgd(LINF, restarts=bad), ValueError, "`restarts` must be a whole number",
    )  # fmt: skip
for bad in (-0.1, NAN, INF):
    VALUES[f"step size {bad}"] = (
        lambda bad=bad: fa.Steepest((0.1, bad)), ValueError, "`step_size` must be finite and at le",
    )  # fmt: skip
for bad in ("a", None, True):
    VALUES[f"step size {bad}"] = (
        lambda bad=bad: fa.Momentum(bad), TypeError, "`step_size` must be a number, got",
    )  # fmt: skip


@pytest.mark.parametrize("name", VALUES)
def test_values_that_cannot_be(name: str) -> None:
    make, error, words = VALUES[name]
    with pytest.raises(error, match=words):
        make()


G = seeded(1)
X, Y = torch.rand(5, 6, generator=G), torch.tensor([0, 1, 2, 0, 1])
MODEL = smooth_net(torch.float32)
PGD = fa.pgd(LINF, steps=3)


def nan_gradient(x: Tensor) -> Tensor:
    """Finite logits whose gradient is 0 * inf."""
    return MODEL(x) + 0 * torch.sqrt(x * 0).sum(1, keepdim=True)


def nan_far_away(x: Tensor) -> Tensor:
    """NaN only where an attack has gone."""
    return torch.where((x - X).abs().amax(1, keepdim=True) > 0.05, NAN, MODEL(x))


RUNS: dict[str, tuple[Make, type[Exception], str]] = {
    "x a list": (lambda: PGD(MODEL, [1.0], Y), TypeError, "`x` must be a torch.Tensor, got list"),
    "x and model swapped": (lambda: PGD(X, MODEL, Y), TypeError, "`x` must be a torch.Tensor, got"),
    "x of integers": (
        lambda: PGD(MODEL, X.mul(255).byte(), Y), TypeError, r"`x` must be float32.*got uint8.*/ 2",
    ),
    "x complex": (lambda: PGD(MODEL, X + 0j, Y), TypeError, "`x` must be float32, .* got complex6"),
    "x sparse": (lambda: PGD(MODEL, X.to_sparse(), Y), TypeError, "`x` must be a dense tensor"),
    "x a scalar": (lambda: PGD(MODEL, X[0, 0], Y), ValueError, r"`x` must be \(N, \*shape\)"),
    "x NaN": (lambda: PGD(MODEL, X * NAN, Y), ValueError, "`x` must be finite, got NaN or inf"),
    "x inf": (lambda: PGD(MODEL, X * INF, Y), ValueError, "`x` must be finite"),
    "x in bytes' range": (
        lambda: PGD(MODEL, X * 255, Y), ValueError, r"`x` must lie within .*\[0.0, 1.0\], got valu",
    ),
    "x below a half-open box": (
        lambda: fa.pgd(fa.Linf(0.1, (0, INF)))(MODEL, X - 5, Y), ValueError, "`x` must lie within",
    ),
    "bfloat16 x beyond its rounding": (
        lambda: PGD(MODEL, (X + 0.05).clamp(max=1.05).bfloat16().clamp(min=1.04), Y),
        ValueError, "`x` must lie within",
    ),
    "x beyond one channel's bounds": (
        lambda: fa.pgd(fa.Linf(0.1, ((0,) * 6, (1, 1, 1, 1, 1, 0.01))))(MODEL, X, Y),
        ValueError, "`x` must lie within",
    ),
    "bounds of other channels": (
        lambda: fa.pgd(fa.Linf(0.1, ((0, 0), (1, 1))))(MODEL, X, Y),
        ValueError, r"`bounds` are given for 2 channels .*got data of shape \(5, 6\)",
    ),
    "radius of other samples": (
        lambda: PGD(MODEL, X, Y, radius=torch.ones(3)), ValueError,
        r"`radius` must be a number or \(5,\), one a sample, got \(3,\)",
    ),
    "radius below 0": (lambda: PGD(MODEL, X, Y, radius=-0.1), ValueError, "`radius` must be at le"),
    "a radius below 0": (
        lambda: PGD(MODEL, X, Y, radius=torch.tensor([1, 1, -1, 1, 1.0])), ValueError,
        "`radius` must be at least 0 for each sample",
    ),
    "a radius NaN": (
        lambda: PGD(MODEL, X, Y, radius=torch.tensor([1, 1, NAN, 1, 1.0])), ValueError,
        "`radius` must be at least 0 for each sample",
    ),
    "radius a string": (
        lambda: PGD(MODEL, X, Y, radius="8/255"), TypeError, "`radius` must be a number or a tenso",
    ),
    "a random start without end": (
        lambda: PGD(MODEL, X, Y, radius=INF), ValueError, "`radius` must be finite to start",
    ),
    "apgd without end": (
        lambda: fa.apgd(fa.Linf(INF), 5, start="zero")(MODEL, X, Y), ValueError,
        "`radius` must be finite: apgd",
    ),
    "y a list": (lambda: PGD(MODEL, X, [0] * 5), TypeError, "`y` must be a torch.Tensor, got list"),
    "y short": (lambda: PGD(MODEL, X, Y[:4]), ValueError, r"`y` must be \(5,\) .* got \(4,\)"),
    "y of another rank": (lambda: PGD(MODEL, X, Y[:, None]), ValueError, r"`y` must be \(5,\)"),
    "y too large": (lambda: PGD(MODEL, X, Y + 1), ValueError, r"`y` must be in \[0, 3\), got 3"),
    "y below 0": (lambda: PGD(MODEL, X, Y - 1), ValueError, r"`y` must be in \[0, 3\), got -1"),
    "y one-hot": (
        lambda: PGD(MODEL, X, torch.eye(3)[Y].long()), ValueError,
        r"`y` must be \(5,\) .* got \(5, 3\): take the classes of one-hot rows, y.int\(\).argmax",
    ),
    "target one-hot": (
        lambda: PGD(MODEL, X, target=torch.eye(3)[Y]), TypeError, r"rows, target.int\(\).argmax\(1",
    ),
    "y probabilities": (
        lambda: PGD(MODEL, X, MODEL(X).softmax(1)), TypeError, "`y` must be int.* go with kl",
    ),
    "x of another dtype than the model": (
        lambda: PGD(MODEL, X.double(), Y), TypeError,
        "`x` is float64 but the model's parameters are float32: convert one",
    ),
    "y floating": (lambda: PGD(MODEL, X, Y.float()), TypeError, "`y` must be integers"),
    "target an int": (
        lambda: PGD(MODEL, X, Y, target=1), TypeError, "`target` must be a torch.Tensor, got int",
    ),
    "target too large": (
        lambda: PGD(MODEL, X, Y, target=Y + 9), ValueError, r"`target` must be in \[0, 3\), got 9",
    ),
    "generator a seed": (
        lambda: PGD(MODEL, X, Y, generator=1), TypeError, "`generator` must be a torch.Generator",
    ),
    "no model": (lambda: PGD(None, X, Y), TypeError, "`model` must be callable, got NoneType"),
    "a model of tuples": (
        lambda: PGD(lambda x: (MODEL(x),), X, Y), TypeError, r"`model` must map .* got tuple: .*lo",
    ),
    "a model of other rows": (
        lambda: PGD(lambda x: MODEL(x)[:2], X, Y), ValueError, r"`model\(x\)` must have one row a",
    ),
    "a model of images": (
        lambda: PGD(lambda x: x[:, :, None, None], X, Y), ValueError,
        r"`y` must be \(5, 1, 1\) to go with .*, got \(5,\): .* classifier's logits are \(N, class",
    ),
    "a model without gradient": (
        lambda: PGD(lambda x: MODEL(x).detach(), X, Y), ValueError, "`model` must be differentiabl",
    ),
    "a model that ignores x": (
        lambda: PGD(lambda x: MODEL(torch.ones(5, 6)), X, Y), ValueError, "`model` must be differe",
    ),
    "NaN logits": (lambda: PGD(lambda x: MODEL(x) * NAN, X, Y), ValueError, "NaN"),
    "NaN logits on the way": (lambda: fa.bim(LINF, steps=3)(nan_far_away, X, Y), ValueError, "`mo"),
    "NaN gradient": (lambda: PGD(nan_gradient, X, Y), ValueError, "gradient are no number"),
    "NaN gradient at the last step": (
        lambda: fa.fgsm(fa.L2(0.1))(nan_gradient, X, Y), ValueError, "gradient are no number",
    ),
    "dlr of two classes": (
        lambda: fa.pgd(LINF, objective=fa.dlr)(lambda x: MODEL(x)[:, :2], X, Y % 2), ValueError,
        "the dlr needs 3 classes or more, got 2",
    ),
    "targeted dlr of three": (
        lambda: fa.pgd(LINF, objective=fa.dlr)(MODEL, X, Y, target=Y), ValueError,
        "the targeted dlr needs 4 classes or more, got 3",
    ),
    "a mean loss": (
        lambda: fa.pgd(LINF, objective=torch.nn.functional.cross_entropy)(MODEL, X, Y), ValueError,
        "one loss a sample.*reduction='none'",
    ),
    "an objective that is none": (
        lambda: fa.pgd(LINF, objective=3)(MODEL, X, Y), TypeError, "`objective` must be callable",
    ),
    "verify: another shape": (
        lambda: fa.verify(MODEL, X, X[:3], Y, LINF), ValueError, r"`x_adv` must be \(5, 6\) like `",
    ),
    "verify: another dtype": (
        lambda: fa.verify(MODEL, X, X.double(), Y, LINF), TypeError, "`x_adv` must be float32 like",
    ),
    "verify: radii": (
        lambda: fa.verify(MODEL, X, X, Y, LINF, radius=torch.ones(5, 1)), ValueError,
        r"`radius` must be a number or \(5,\)",
    ),
    "verify: NaN": (
        lambda: fa.verify(lambda x: MODEL(x) * NAN, X, X, Y, LINF), ValueError, "NaN",
    ),
    "normalized: channels": (
        lambda: fa.normalized(MODEL, [0.5, 0.5], [1, 1])(X), ValueError, "`mean` and `std` have 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_runs_that_cannot_be(name: str) -> None:
    run, error, words = RUNS[name]
    x, y = X.clone(), Y.clone()
    with pytest.raises(error, match=words):
        run()
    assert torch.equal(X, x)
    assert torch.equal(Y, y)


def test_a_float32_rounding_beyond_the_bounds_is_no_mistake() -> None:
    mean, std = 0.485, 0.229
    ball = fa.Linf(0.1, ((0 - mean) / std, (1 - mean) / std))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        ends = torch.tensor([[0.0, 1.0, 0.5] * 2]).sub(mean).div(std)
        x = torch.nextafter(ends, ends * 2).to(dtype)
        got = fa.pgd(ball)(lambda v: MODEL(v.float()), x, Y[:1])
        assert torch.isfinite(got).all()


def test_a_model_s_own_errors_pass() -> None:
    for model in (lambda v: MODEL(v[:, :5]), torch.nn.Sequential(torch.nn.Linear(5, 3))):
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
            PGD(model, X, Y)
    casting = torch.nn.Linear(6, 3)
    casting.forward = lambda v: MODEL(v.float())  # another dtype than its parameters is no mistake
    assert PGD(casting, X.double(), Y).dtype == torch.float64


def test_a_radius_beyond_the_box_warns() -> None:
    for ball, radius in ((fa.Linf(8), None), (LINF, 8), (LINF, torch.full((5,), 8.0))):
        with pytest.warns(
            UserWarning, match="`radius` 8 exceeds the width 1 .* 8 / 255 meant"
        ) as w:
            fa.bim(ball, 0.1)(MODEL, X, Y, radius=radius)
        assert w[0].filename == __file__
    fa.bim(fa.L2(8), 0.1)(MODEL, X, Y)  # a long diagonal
    fa.bim(fa.Linf(8, None), 0.1)(MODEL, X, Y)
    fa.bim(LINF, 0.1)(MODEL, X, Y, radius=torch.tensor([0.1, 8, 8, 8, 8]))
    fa.bim(fa.Linf(INF), 0.1)(MODEL, X, Y)


def test_an_infinite_gradient_has_a_sign_in_linf() -> None:
    """sqrt's derivative at 0 is inf: the first pixel of the first sample."""
    x = torch.tensor([[0.0, 0.5], [0.25, 0.5]])
    y = torch.zeros(2, dtype=torch.long)
    model = lambda v: torch.stack([1 - v[:, 0].sqrt(), v[:, 1]], 1)  # noqa: E731
    for attack in (fa.bim(fa.Linf(0.1), 0.02, 3), fa.apgd(fa.Linf(0.1), 3, start="zero")):
        got = attack(model, x, y)
        assert bool((got > x).all())
        assert bool((got - x <= 0.1).all())
    torch.testing.assert_close(fa.bim(fa.Linf(0.1), 0.02, 3)(model, x, y), x + 0.06)
    for other in (
        fa.bim(fa.L2(0.1)), fa.bim(fa.L1(0.1)), fa.mi_fgsm(fa.Linf(0.1)),
        fa.Attack(fa.Linf(0.1), fa.Adam(0.1), start="zero"),
        fa.Attack(fa.Linf(0.1), fa.Gradient(0.1), start="zero"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="an infinite gradient where its length counts"):
            other(model, x, y)
