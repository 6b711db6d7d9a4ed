"""The captured step against the ordinary loop, bit for bit, on a stand-in for the device.

What is tested is what is captured and what a replay computes; CUDA's own capture is tests/gpu's.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from conftest import seeded
from fake_graph import FakeGraphs
from no_sync import NoSync
from stand_in import graphs as graphs  # a fixture
from stand_in import small_net
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import replay

G = seeded(2)
X, Y = torch.rand(9, 3, 8, 8, generator=G), torch.randint(0, 5, (9,), generator=G)
LINF = fa.Linf(0.1)
ATTACKS = {
    "linf": fa.pgd(LINF, steps=4),
    "l2": fa.pgd(fa.L2(0.5), steps=4),
    "l1": fa.pgd(fa.L1(4.0), steps=4),
    "no box": fa.pgd(fa.L2(0.5, bounds=None), steps=4),
    "channels": fa.pgd(fa.Linf(0.1, bounds=((0.0, 0.0, 0.0), (1.0, 0.9, 1.0))), steps=4),
    "zero": fa.bim(LINF, 0.03, steps=4),
    "schedule": fa.Attack(LINF, fa.Steepest((0.05, 0.03, 0.02)), 5),
    "gradient": fa.Attack(fa.L2(0.5), fa.Gradient(5.0), 4),
    "momentum": fa.mi_fgsm(LINF, steps=5),
    "adam": fa.Attack(LINF, fa.Adam((0.02, 0.01)), 5),
    "restarts": fa.pgd(LINF, steps=3, restarts=3),
    "margin": fa.pgd(LINF, steps=4, objective=fa.margin),
    "dlr": fa.pgd(LINF, steps=4, objective=fa.dlr),
    "callable": fa.pgd(LINF, steps=4, objective=lambda z, y: -z.gather(1, y[:, None])[:, 0]),
    "train": fa.pgd(LINF, steps=4, mode="train"),
    "fooled": fa.pgd(fa.Linf(0.02), steps=20, stop="fooled"),
    "fooled momentum": fa.Attack(LINF, fa.Momentum(0.005), 20, stop="fooled"),
}
AIMS: dict[str, dict[str, object]] = {
    "y": {"y": Y},
    "target": {"y": Y, "target": (Y + 1) % 5},
    "none": {},
    "radii": {"y": Y, "radius": torch.linspace(0.0, 0.05, len(X))},
    "labels of other types": {"y": Y.to(torch.uint8)},
}


def both(
    attack: fa.Attack, model: nn.Module, x: Tensor = X, **given: object
) -> tuple[fa.AttackResult, fa.AttackResult]:
    """Step by step, and replayed."""
    results = []
    for graph in (False, True):
        torch.manual_seed(1)  # of a dropout
        fast = fa.compile(model, graph=graph)
        results.append(attack.run(fast, x, generator=seeded(1), **given))
        note = "replayed a captured step" if graph else "graph=False"
        assert note in str(fast.report())
    return results[0], results[1]


def assert_same(one: fa.AttackResult, other: fa.AttackResult, stopped: bool = False) -> None:
    assert torch.equal(one.x_adv, other.x_adv)
    assert torch.equal(one.success, other.success)
    assert torch.equal(one.loss, other.loss)
    assert stopped or one.forwards == other.forwards


@pytest.mark.parametrize("aim", AIMS)
@pytest.mark.parametrize("name", ATTACKS)
def test_a_replay_is_the_ordinary_loop(name: str, aim: str, graphs: list[FakeGraphs]) -> None:
    attack = ATTACKS[name]
    before = torch.get_rng_state()
    assert_same(*both(attack, small_net(), **AIMS[aim]), stopped=attack.stop is not None)
    (made,) = graphs
    assert made.log[:3] == ["rehearse", "rehearse", "capture"]
    assert made.log.count("capture") == 1
    replays = attack.steps * attack.restarts
    assert made.log.count("replay") == replays or attack.stop
    if name != "train":
        torch.manual_seed(1)
        assert not torch.equal(before, torch.get_rng_state()) or attack.start == "zero"
