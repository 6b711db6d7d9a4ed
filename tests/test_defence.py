"""fa.defence: the rectifier and its training, synthetic perturbations, detector, metrics."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import image_net, seeded
from torch import Tensor, nn

import fastadv as fa
from fastadv.defence import Defended, Detector, Outcomes, Rectifier, Training

BALLS = {"linf": fa.Linf(0.2), "l2": fa.L2(1.5), "l1": fa.L1(4.0)}


def patterns(
    count: int, ball: fa.Ball = BALLS["linf"], dtype: torch.dtype = torch.float32
) -> list[fa.Perturbation]:
    """Random ones of shape (3, 6, 6), in the ball."""
    g, free = seeded(1), replace(ball, bounds=None)
    deltas = torch.randn(count, 3, 6, 6, generator=g, dtype=torch.float64).to(dtype)
    return [fa.Perturbation(d, ball) for d in free.project(deltas, torch.zeros_like(deltas))]


def batches(count: int = 12, size: int = 4) -> list[Tensor]:
    return list(torch.rand(count, 3, 6, 6, generator=seeded(2)).split(size))


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (3, 5, 7), (2, 1, 28, 28)])
def test_dct_is_scipys(shape: tuple[int, ...]) -> None:
    fft = pytest.importorskip("scipy.fft")
    x = torch.rand(shape, generator=seeded(0), dtype=torch.float64)
    expected = torch.as_tensor(fft.dctn(x.numpy(), axes=(-2, -1), norm="ortho"))
    torch.testing.assert_close(fa.defence.dct2(x), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(fa.defence.dct2(x.float()), expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_synthetic_ones_reach_the_radius_and_not_beyond(norm: str, dtype: torch.dtype) -> None:
    ball = BALLS[norm]
    for p in fa.defence.synthetic(patterns(4, ball, dtype), 6):
        assert p.ball == ball
        assert p.delta.dtype == dtype
        assert p.norm() <= ball.radius
        assert p.norm() >= ball.radius * (0.97 if dtype == torch.bfloat16 else 0.99999)


@pytest.mark.parametrize("norm", BALLS)
def test_synthetic_ones_are_positive_sums(norm: str) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    real = patterns(4, BALLS[norm])
    basis = torch.stack([p.delta.flatten() for p in real], 1).double().numpy()
    parts = []
    for p in fa.defence.synthetic(real, 6):
        weights, rest = optimize.nnls(basis, p.delta.flatten().double().numpy())
        assert rest < 1e-6 * np.linalg.norm(basis)
        parts.append(int((weights > 1e-3).sum()))
    assert max(parts) > 1


def test_synthetic_ones_follow_their_seed() -> None:
    real = patterns(4)
    few, many = fa.defence.synthetic(real, 2, seed=3), fa.defence.synthetic(real, 5, seed=3)
    assert all(torch.equal(a.delta, b.delta) for a, b in zip(few, many, strict=False))
    assert not torch.equal(many[0].delta, fa.defence.synthetic(real, 1, seed=4)[0].delta)
    assert fa.defence.synthetic(real, 0) == []


def test_split_keeps_some_unseen() -> None:
    real = patterns(5)
    known, unseen = fa.defence.split(real, 2, seed=1)
    assert len(known) == 3
    assert {id(p) for p in known} | {id(p) for p in unseen} == {id(p) for p in real}
    assert fa.defence.split(real, 2, seed=1) == (known, unseen)
    for count in (0, 5):
        with pytest.raises(ValueError, match=r"`unseen` must leave some of the 5"):
            fa.defence.split(real, count)


def test_what_synthetic_refuses() -> None:
    real, zero = patterns(2), fa.Perturbation(torch.zeros(3, 6, 6), BALLS["linf"])
    with pytest.raises(ValueError, match="must have one ball, got several"):
        fa.defence.synthetic([*real, *patterns(1, BALLS["l2"])], 1)
    with pytest.raises(ValueError, match=r"norm above 0, got 0\.0"):
        fa.defence.synthetic([zero], 1)
    with pytest.raises(ValueError, match=r"radius in \(0, inf\), got inf"):
        fa.defence.synthetic([fa.Perturbation(real[0].delta, fa.Linf(math.inf))], 1)
    with pytest.raises(ValueError, match="`count` must be at least 0, got -1"):
        fa.defence.synthetic(real, -1)
    with pytest.raises(ValueError, match="some of one shape, got none"):
        fa.defence.synthetic([], 1)
    with pytest.raises(ValueError, match=re.escape("got [(3, 6, 6), (3, 8, 8)]")):
        fa.defence.synthetic([*real, fa.Perturbation(torch.ones(3, 8, 8), BALLS["linf"])], 1)
    with pytest.raises(TypeError, match="must hold Perturbations, got Tensor"):
        fa.defence.synthetic([real[0].delta], 1)  # type: ignore[list-item]
    with pytest.raises(TypeError, match="must be a sequence of Perturbations"):
        fa.defence.synthetic(real[0], 1)  # type: ignore[arg-type]


def test_the_rectifier_begins_as_the_identity_and_follows_its_seed() -> None:
    before = torch.get_rng_state()
    first, same, other = Rectifier(3, 4), Rectifier(3, 4), Rectifier(3, 4, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    x = batches()[0]
    assert torch.equal(first(x), x)
    assert torch.equal(first.enter.weight, same.enter.weight)
    assert not torch.equal(first.enter.weight, other.enter.weight)
    assert len(first.blocks) == 5
    with pytest.raises(ValueError, match=re.escape("`x` must be (N, 3, H, W), got (4, 1, 6, 6)")):
        first(x[:, :1])
    with pytest.raises(ValueError, match="`width` must be at least 1, got 0"):
        Rectifier(3, 0)


def test_training_leaves_the_classifier_as_it_is() -> None:
    model, rectifier = image_net(), Rectifier(3, 4)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    x = batches()
    with torch.inference_mode():
        assert Training(rectifier, model, patterns(2)).run(x, 2) is rectifier
    assert not torch.equal(rectifier(x[0]), x[0])
    assert not rectifier.training
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    for parameter in model.parameters():
        assert parameter.requires_grad
        assert parameter.grad is not None
        assert bool((parameter.grad == 1).all())


def planes() -> tuple[nn.Module, list[Tensor], fa.Perturbation]:
    """A classifier of light and dark images, the images, and a delta that makes all light."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([-torch.ones(64), torch.ones(64)]) / 8)
        model[1].bias.copy_(torch.tensor([4.0, -4.0]))
    x = torch.rand(60, 1, 2, 2, generator=seeded(3)) * 0.06 + 0.35
    x[::2] += 0.24
    x = nn.functional.interpolate(x, size=(8, 8), mode="bilinear")
    edge = torch.zeros(1, 8, 8)
    edge[:, ::2, ::2] = 0.6  # what no such smooth image has
    return model, list(x.split(20)), fa.Perturbation(edge, fa.Linf(0.6))


def test_training_restores_the_labels_of_perturbed_images() -> None:
    model, x, delta = planes()
    rectifier = Training(Rectifier(1, 8), model, [delta], lr=1e-2).run(x, 25)
    images = torch.cat(x)
    clean = model(images).argmax(1)
    assert float((model(delta.apply(images)).argmax(1) == clean).float().mean()) < 0.7
    assert float((model(rectifier(delta.apply(images))).argmax(1) == clean).float().mean()) > 0.9


class Interrupted:
    """A loader that stops at its n-th batch, as Ctrl-C would."""

    def __init__(self, x: list[Tensor], n: int) -> None:
        self.x, self.left = x, n

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.x:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("stop", [0, 2, 4])
def test_an_interrupted_training_goes_on_to_the_same_weights(stop: int, tmp_path: Path) -> None:
    x, known = batches(), patterns(3)
    whole = Training(Rectifier(3, 4), image_net(), known, seed=5).run(x, 3)
    part = Training(Rectifier(3, 4), image_net(), known, seed=5)
    with pytest.raises(KeyboardInterrupt):
        part.run(Interrupted(x, stop), 3)
    torch.save(part.state_dict(), tmp_path / "state.pt")
    again = Training(Rectifier(3, 4, seed=9), image_net(), known, seed=5)
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert (again.epochs, again.batches) == divmod(stop, 3)
    again.run(x, 3)
    for a, b in zip(whole.parameters(), again.rectifier.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="`state` must be of seed 6, got 5"):
        Training(Rectifier(3, 4), image_net(), known, seed=6).load_state_dict(part.state_dict())


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 4)


def test_what_training_refuses() -> None:
    known = patterns(1)
    with pytest.raises(ValueError, match=r"`clean` must be in \[0, 1\), got 1"):
        Training(Rectifier(3, 4), image_net(), known, clean=1)
    with pytest.raises(ValueError, match="`rectifier` must have parameters"):
        Training(nn.Identity(), image_net(), known)
    training = Training(Rectifier(3, 4), image_net(), known)
    with pytest.raises(ValueError, match="`epochs` must be at least 1, got 0"):
        training.run(batches(), 0)
    with pytest.raises(ValueError, match="`loader` must give batches"):
        training.run([], 1)
    with pytest.raises(TypeError, match="`loader` must give batches, got a tensor"):
        training.run(batches()[0], 1)
    with pytest.raises(ValueError, match="`model` must be differentiable"):
        Training(Rectifier(3, 4), Constant(), known).run(batches(), 1)
    with pytest.raises(ValueError, match="got NaN"):
        Training(Rectifier(3, 4), lambda x: x.flatten(1) / 0 * 0, known).run(batches(), 1)
    with pytest.raises(ValueError, match=re.escape("`rectifier(x)` must be (4, 3, 6, 6)")):
        Training(nn.Conv2d(3, 1, 1), image_net(), known).run(batches(), 1)


class Blur(nn.Module):
    """Every pixel the mean of the 3x3 around it: it takes out what varies fast."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), "replicate"), 3, 1)


def fitted() -> tuple[Defended, list[Tensor], fa.Perturbation]:
    pytest.importorskip("sklearn")
    model, x, delta = planes()
    detector = Detector((1, 8, 8)).fit(Blur(), x[:2], [delta])
    return Defended(model, Blur(), detector), x, delta


def test_the_detector_finds_planted_perturbations_in_unseen_images() -> None:
    defended, x, delta = fitted()
    clean, attacked = x[2], delta.apply(x[2])
    rectified, found = defended.rectify(torch.cat([clean, attacked]))
    assert found.tolist() == [False] * 20 + [True] * 20
    expected = defended.model(torch.cat([clean, rectified[20:]]))
    assert torch.equal(defended(torch.cat([clean, attacked])), expected)
    leaf = attacked.clone().requires_grad_()
    defended(leaf).sum().backward()
    assert leaf.grad is not None


def test_a_detector_comes_back_from_its_file(tmp_path: Path) -> None:
    defended, x, _ = fitted()
    detector, residual = defended.detector, Blur()(x[0]) - x[0]
    detector.save(tmp_path / "d.safetensors")
    for copy in (Detector.load(tmp_path / "d.safetensors"), Detector((1, 8, 8))):
        copy.load_state_dict(detector.state_dict())
        assert torch.equal(copy.score(residual), detector.score(residual))
    loaded = Detector.load(tmp_path / "d.safetensors")
    assert torch.equal(loaded.score(residual), detector.score(residual))
    assert [path.name for path in tmp_path.iterdir()] == ["d.safetensors"]
    fa.Perturbation(x[0][0], fa.Linf(1)).save(tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match="`path` must be a saved Detector"):
        Detector.load(tmp_path / "p.safetensors")
    (tmp_path / "text").write_text("not one")
    with pytest.raises(ValueError, match="`path` must be a safetensors file"):
        Detector.load(tmp_path / "text")


def test_what_the_detector_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, x, delta = planes()
    detector = Detector((1, 8, 8))
    with pytest.raises(RuntimeError, match="has not been fitted"):
        detector.predict(x[0])
    with pytest.raises(RuntimeError, match="nothing to save"):
        detector.save(tmp_path / "d")
    with pytest.raises(ValueError, match=re.escape("must be (N, 1, 8, 8), got (20, 1, 8, 4)")):
        detector.features(x[0][..., :4])
    with pytest.raises(ValueError, match=re.escape("`shape` must be (C, H, W), got (8, 8)")):
        Detector((8, 8))
    monkeypatch.setitem(sys.modules, "sklearn.svm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install fastadv\[defence\]"):
        detector.fit(Blur(), x, [delta])


def table() -> Outcomes:
    """Four images, of which the classifier knows three, under two perturbations."""
    return Outcomes(
        label=torch.tensor([0, 1, 2, 3]),
        clean=torch.tensor([0, 1, 2, 0]),
        clean_rectified=torch.tensor([0, 2, 2, 3]),
        perturbed=torch.tensor([[0, 0, 0, 0], [1, 1, 1, 3]]),
        perturbed_rectified=torch.tensor([[0, 1, 2, 1], [0, 1, 1, 0]]),
        alarms=torch.tensor([False, True, False, False]),
        detected=torch.tensor([[True, True, False, True], [True, True, True, False]]),
    )


def test_the_metrics_of_a_table() -> None:
    outcomes = table()
    # Perturbed: right are 1 and 2 of 4; rectified: 3 and 2. As on the clean image: 2, 1; 3, 3.
    assert outcomes.agreement == (3 / 8, 6 / 8)
    assert outcomes.gain == 2 / 8
    assert outcomes.restoration == pytest.approx((5 / 8) / (3 / 4))
    assert outcomes.detection == 6 / 8
    assert outcomes.false_alarms == 1 / 4
    # All of it: clean 0 2 2 0, two right; perturbed 0 1 0 1 and 0 1 1 3, two and three right.
    assert outcomes.defence == pytest.approx((2 / 4 + 5 / 8) / 2 / (3 / 4))
    assert "agreement 0.375 -> 0.750, gain 0.250" in str(outcomes)
    never = replace(outcomes, clean=torch.tensor([1, 0, 0, 0]))
    assert math.isnan(never.defence)
    with pytest.raises(ValueError, match=re.escape("`alarms` must be (4,), got (3,)")):
        replace(outcomes, alarms=outcomes.alarms[:3])
    with pytest.raises(ValueError, match=re.escape("`detected` must be (2, 4), got (1, 4)")):
        replace(outcomes, detected=outcomes.detected[:1])


def test_measure_is_what_the_parts_say() -> None:
    defended, x, delta = fitted()
    defended.train()
    weak = fa.Perturbation(0 * delta.delta, delta.ball)
    y = torch.zeros(20, dtype=torch.long)
    outcomes = fa.defence.measure(defended, [delta, weak], [(x[1], y), (x[2], y)])
    assert all(module.training for module in defended.modules())
    assert outcomes.label.tolist() == [0] * 40
    assert outcomes.perturbed.shape == outcomes.detected.shape == (2, 40)
    assert outcomes.detection == 0.5
    assert outcomes.false_alarms == 0
    assert torch.equal(outcomes.perturbed[1], outcomes.clean)
    assert outcomes.perturbed[0].tolist() == [
        int(k) for k in defended.model(delta.apply(torch.cat(x[1:]))).argmax(1)
    ]
    alone = fa.defence.measure(defended, [delta], x[1:])
    assert torch.equal(alone.label, alone.clean)
    with pytest.raises(ValueError, match=r"\(x, y\) in every batch or in none"):
        fa.defence.measure(defended, [delta], [x[1], (x[2], y)])
