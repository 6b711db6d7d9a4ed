"""One model compiled twice, step by step and captured, on a stand-in for the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from conftest import seeded
from fake_graph import FakeGraphs
from stand_in import standing_in
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import Compiled

G = seeded(2)
X, Y = torch.rand(9, 3, 8, 8, generator=G), torch.randint(0, 5, (9,), generator=G)


@dataclass
class Pair:
    """One model compiled twice: step by step, and captured."""

    plain: Compiled
    fast: Compiled
    made: list[FakeGraphs]

    def run(
        self, attack: fa.Attack, x: Tensor = X, **given: Tensor
    ) -> tuple[fa.AttackResult, fa.AttackResult]:
        results = []
        for model in (self.plain, self.fast):
            torch.manual_seed(1)  # of a dropout
            results.append(attack.run(model, x, generator=seeded(1), **given))
        assert "graph=False" in str(self.plain.report())
        assert "replayed a captured step" in str(self.fast.report())
        return results[0], results[1]

    def log(self) -> list[str]:
        lines, self.made[0].log = self.made[0].log, []
        return lines


def pair(made: list[FakeGraphs], model: nn.Module) -> Pair:
    made.clear()
    return Pair(fa.compile(model, graph=False), fa.compile(model, graph=True), made)


def assert_same(one: fa.AttackResult, other: fa.AttackResult) -> None:
    assert torch.equal(one.x_adv, other.x_adv)
    assert torch.equal(one.success, other.success)
    assert torch.equal(one.loss, other.loss)


@pytest.fixture(scope="module")
def made() -> Iterator[list[FakeGraphs]]:
    """What stands for the graphs, in the order in which they were made."""
    with standing_in() as made:
        yield made
