"""fa.defence: synthetic perturbations, the rectifier and its training."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import image_net, seeded
from defence_cases import BALLS, patterns, planes
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastadv as fa
from fastadv.defence import Rectifier, Training


def batches(count: int = 12, size: int = 4) -> list[Tensor]:
    return list(torch.rand(count, 3, 6, 6, generator=seeded(2)).split(size))


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
    for form in ({"place": "tiles"}, {"per_class": True}):
        with pytest.raises(ValueError, match="must be one delta like a sample each, got Pert"):
            fa.defence.synthetic([replace(real[0], **form)], 1)  # type: ignore[arg-type]
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
    loader = DataLoader(TensorDataset(torch.cat(x), torch.zeros(12, dtype=torch.long)), 5)
    with torch.inference_mode():
        assert Training(rectifier, model, patterns(2)).run(loader, 2) is rectifier
    assert not torch.equal(rectifier(x[0]), x[0])
    assert not rectifier.training
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    for parameter in model.parameters():
        assert parameter.requires_grad
        assert parameter.grad is not None
        assert bool((parameter.grad == 1).all())


def test_training_restores_the_labels_of_perturbed_images() -> None:
    model, x, delta = planes()
    rectifier = Training(Rectifier(1, 8), model, [delta], lr=1e-2).run(x, 25)
    images = torch.cat(x)
    clean = model(images).argmax(1)
    assert float((model(delta.apply(images)).argmax(1) == clean).float().mean()) < 0.7
    assert float((model(rectifier(delta.apply(images))).argmax(1) == clean).float().mean()) > 0.9


class Interrupted:
    """A loader that stops at its n-th batch, as Ctrl-C would."""

    def __init__(self, loader: Iterable[list[Tensor]], n: int) -> None:
        self.loader, self.left = loader, n

    def __iter__(self) -> Iterator[list[Tensor]]:
        for batch in self.loader:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            yield batch


def shuffled() -> DataLoader[tuple[Tensor, ...]]:
    """Three batches an epoch, each epoch in another order."""
    data = TensorDataset(torch.cat(batches()))
    return DataLoader(data, batch_size=4, shuffle=True, generator=seeded(7))


@pytest.mark.parametrize("stop", [0, 2, 3, 7])
def test_an_interrupted_training_goes_on_to_the_same_weights(stop: int, tmp_path: Path) -> None:
    known = patterns(3)
    whole = Training(Rectifier(3, 4), image_net(), known, seed=5).run(shuffled(), 3)
    part = Training(Rectifier(3, 4), image_net(), known, seed=5)
    with pytest.raises(KeyboardInterrupt):
        part.run(Interrupted(shuffled(), stop), 3)
    torch.save(part.state_dict(), tmp_path / "state.pt")
    again = Training(Rectifier(3, 4, seed=9), image_net(), known, seed=5)
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert (again.epochs, again.batches) == divmod(stop, 3)
    again.run(shuffled(), 3)
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
    with pytest.raises(ValueError, match=re.escape("`x` must be (N, 3, 6, 6), got (4, 3, 4, 6)")):
        training.run([batches()[0][:, :, :4]], 1)
    with pytest.raises(ValueError, match="in every epoch, got none: is it an iterator"):
        training.run(iter(batches()), 2)
    with pytest.raises(ValueError, match="`model` must be differentiable"):
        Training(Rectifier(3, 4), Constant(), known).run(batches(), 1)
    with pytest.raises(ValueError, match="got NaN"):
        Training(Rectifier(3, 4), lambda x: x.flatten(1) / 0 * 0, known).run(batches(), 1)
    with pytest.raises(ValueError, match=re.escape("`rectifier(x)` must be (4, 3, 6, 6)")):
        Training(nn.Conv2d(3, 1, 1), image_net(), known).run(batches(), 1)
