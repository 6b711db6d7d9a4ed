"""No step of an attack waits for the device: nothing is read, and no size depends on the data.

The CPU stands for the device. Between the second and the last gradient of an attack (the first one
checks the labels) no such call may come; a stop's looks at the batch are counted.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import image_net, seeded, smooth_net
from no_sync import Forbidden, NoSync
from torch import Tensor, nn

import fastadv as fa
from fastadv import reference, reference_head, stops

LINF = fa.Linf(0.1)
ATTACKS = {
    "linf": fa.pgd(LINF, steps=4),
    "l2": fa.pgd(fa.L2(0.5), steps=4),
    "l1": fa.pgd(fa.L1(2.0), steps=4),
    "no box": fa.pgd(fa.L2(0.5, bounds=None), steps=4),
    "schedule": fa.Attack(LINF, fa.Steepest((0.03, 0.02, 0.01)), 4),
    "gradient": fa.Attack(fa.L2(0.5), fa.Gradient(1.0), 4),
    "momentum": fa.mi_fgsm(LINF, steps=4),
    "adam": fa.Attack(LINF, fa.Adam(0.02), 4),
    "apgd": fa.apgd(LINF, steps=9),
    "restarts": fa.pgd(LINF, steps=3, restarts=3),
    "margin": fa.pgd(LINF, steps=4, objective=fa.margin),
    "dlr": fa.pgd(LINF, steps=4, objective=fa.dlr),
    "callable": fa.pgd(LINF, steps=3, objective=lambda z, y: -z.gather(1, y[:, None])[:, 0]),
    "train": fa.pgd(LINF, steps=3, mode="train"),
}


class Watched(nn.Module):
    """A model that notes its forwards in the log in which a mode notes what waits."""

    def __init__(self, model: nn.Module, log: list[str]) -> None:
        super().__init__()
        self.model, self.log = model, log

    def forward(self, x: Tensor) -> Tensor:
        self.log.append("forward")
        return self.model(x)


def waits_in_the_loop(
    run: Callable[[nn.Module], object], model: nn.Module, first: int = 1
) -> list[str]:
    """What waited between the forward `first`, of the second gradient, and the last one."""
    log: list[str] = []
    with NoSync(log):
        run(Watched(model, log))
    forwards = [i for i, line in enumerate(log) if line == "forward"]
    assert len(forwards) > first + 1
    return [line for line in log[forwards[first] : forwards[-1]] if line != "forward"]


@pytest.mark.parametrize("aim", ["y", "target", "none", "radii"])
@pytest.mark.parametrize("name", ATTACKS)
def test_no_step_waits(name: str, aim: str, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    given = {
        "y": {"y": y}, "target": {"y": (y + 1) % 4, "target": y}, "none": {},
        "radii": {"y": y, "radius": torch.linspace(0.01, 0.1, len(x))},
    }[aim]  # fmt: skip
    first = 2 if aim == "none" else 1  # after the model's predictions

    def run(model: nn.Module) -> object:
        return ATTACKS[name].run(model, x, **given)

    assert not waits_in_the_loop(run, image_net(), first)


OBJECTIVES = {
    "binary_cross_entropy": (fa.binary_cross_entropy, lambda z: (z > 0.2).float()),
    "kl": (fa.kl, lambda z: z.softmax(1)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_step_of_other_labels_waits(name: str, images: tuple[Tensor, Tensor]) -> None:
    objective, label = OBJECTIVES[name]
    model, attack = image_net().eval(), fa.pgd(LINF, steps=4, objective=objective)
    y = label(model(images[0]).detach())
    assert not waits_in_the_loop(lambda m: attack(m, images[0], y), model)


def test_no_step_of_segmentation_waits() -> None:
    model = nn.Conv2d(3, 4, 1).eval()
    x, y = torch.rand(2, 3, 4, 5), torch.randint(0, 4, (2, 4, 5))
    assert not waits_in_the_loop(lambda m: fa.pgd(LINF, steps=4)(m, x, y), model)


def test_what_waits_is_caught(images: tuple[Tensor, Tensor]) -> None:
    class Reads(nn.Module):
        def __init__(self, read: Callable[[Tensor], object]) -> None:
            super().__init__()
            self.net, self.read = image_net(), read

        def forward(self, x: Tensor) -> Tensor:
            z = self.net(x)
            self.read(z.detach())
            return z

    reads: dict[str, Callable[[Tensor], object]] = {
        "_local_scalar_dense": lambda z: z.sum().item(),
        "nonzero": lambda z: (z > 0).nonzero(),
        "booleans": lambda z: z[z > 0],
        "tolist": lambda z: z.tolist(),
        "lift_fresh": lambda z: z * torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "list index": lambda z: z[:, [0, 2]],
        "equal": lambda z: torch.equal(z, z),
    }
    for what, read in reads.items():
        waits = waits_in_the_loop(lambda m: fa.pgd(LINF, steps=3)(m, *images), Reads(read))
        assert waits, what
        assert any(what in line for line in waits), waits
        with pytest.raises(Forbidden, match=what), NoSync():
            read(torch.rand(5, 4))


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stops look at the batch every 3 steps, as they do every 8 on a device."""
    monkeypatch.setitem(stops.EVERY, "cpu", 3)


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("stop", ["fooled", "cycle", "resolved"])
def test_a_stop_looks_every_few_steps(stop: str, images: tuple[Tensor, Tensor]) -> None:
    attack = fa.pgd(fa.Linf(0.01), steps=11, stop=stop)
    waits = waits_in_the_loop(lambda m: attack(m, images[0]), image_net(), first=2)
    looks = [line for line in waits if "_local_scalar_dense" in line]
    assert 1 <= len(looks) <= 3  # before steps 3, 6 and 9


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("stop", ["fooled", "cycle", "resolved"])
@pytest.mark.parametrize("radius", [0.02, 0.2])
def test_masks_end_where_dropping_at_once_ends(
    stop: str, radius: float, targeted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, whenever the batch is looked at."""
    model, g = Rowwise(smooth_net()), seeded(3)
    x, y = torch.rand(24, 6, generator=g).double(), torch.randint(0, 3, (24,), generator=g)
    attack = fa.pgd(fa.Linf(radius), step_size=radius / 3, steps=40, restarts=2, stop=stop)
    labels = {"target": y} if targeted else {"y": y}
    results = []
    for every in (1, 3, 8, 100):
        monkeypatch.setitem(stops.EVERY, "cpu", every)
        results.append(attack.run(model, x, **labels, generator=seeded(1)))
    for result in results[1:]:
        assert torch.equal(result.x_adv, results[0].x_adv)
        assert torch.equal(result.success, results[0].success)
        assert torch.equal(result.loss, results[0].loss)
        assert results[0].forwards <= result.forwards <= result.forwards_full
    assert results[0].forwards < results[0].forwards_full


class Rowwise(nn.Module):
    """A sample at a time: its bits do not depend on what else is in the batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.model(row) for row in x.split(1)]) if len(x) else self.model(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_reference_waits_for_nothing(dtype: torch.dtype) -> None:
    """It serves devices that have no kernel: the ops themselves, not seen by a mode outside."""
    x = torch.rand(4, 7).to(dtype)
    x_adv, grad = x.clone(), torch.randn(4, 7).to(dtype)
    sized = reference.compute_dtype(dtype)
    size, radius = torch.full((), 0.1, dtype=sized), torch.full((4,), 0.3, dtype=sized)
    box = torch.tensor([0.0, 1.0], dtype=sized)
    y, z = torch.randint(0, 5, (4,)), torch.randn(4, 5).to(dtype)
    with NoSync():
        for bounds in (box, None):
            reference.step_linf_(x_adv, grad, x, size, radius, bounds, True)
            reference.step_l2_(x_adv, grad, x, size, radius, bounds, True)
            reference.step_l1_(x_adv, grad, x, size, radius, bounds, True, 0.1)
        for kind in range(5):
            binary, kl = kind == 1, kind == 4
            labels = (z > 0).to(sized) if binary else z.to(sized).softmax(1) if kl else y
            reference_head.head(z, labels, None, kind, False)
        reference_head.head(z, y, (y + 1) % 5, 3, True)
        reference.digest(x)
        reference.uniform(x, 1, 2, 3)
        velocity, delta = torch.zeros(7, dtype=sized), x[0].clone()
        reference.universal_(
            reference.step_linf_, delta, velocity, grad, None, size, radius[0], 0.9, True, True
        )
