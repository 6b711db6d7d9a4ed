"""The captured step under a stop: few looks at the batch, smaller batches, the same ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import seeded
from fake_graph import FakeGraphs
from replays import X, Y, assert_same, pair
from replays import made as made  # a fixture
from stand_in import small_net
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastadv as fa
from fastadv.engine import replay

LINF, PGD = fa.Linf(0.1), fa.pgd(fa.Linf(0.1), steps=4)


def test_a_stop_is_looked_for_every_few_steps(made: list[FakeGraphs]) -> None:
    two = pair(made, small_net())
    attack = fa.pgd(LINF, steps=60, stop="fooled")
    wrong = (two.plain.module(X).argmax(1) + 1) % 5
    one, other = two.run(attack, y=wrong)
    assert_same(one, other)
    assert two.log().count("replay") == 8  # all are fooled at the start, and seen to be before 8
    assert other.forwards == (8 + 1) * len(X)
    assert_same(*two.run(attack, y=wrong.roll(1)))


@pytest.mark.parametrize(
    ("stop", "layout"),
    [
        ("fooled", torch.contiguous_format), ("cycle", torch.channels_last),
        ("resolved", torch.contiguous_format),
    ],
)  # fmt: skip
def test_a_stop_goes_on_with_smaller_batches(
    stop: str, layout: torch.memory_format, made: list[FakeGraphs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half as many samples, a quarter, ...; each ends where it ends in the ordinary loop."""
    monkeypatch.setattr(replay, "LEAST", 3)
    model, g = Rowwise(), seeded(4)
    x = torch.rand(24, 3, 8, 8, generator=g).contiguous(memory_format=layout)
    y, target = model(x).topk(2).indices.unbind(1)
    radius = torch.rand(24, generator=g) * 0.2
    two = pair(made, model)
    attack = fa.Attack(fa.Linf(1.0), fa.Steepest(0.01), 80, stop=stop)
    for given in ({"y": y}, {"y": y, "target": target}):
        one, other = two.run(attack, x, radius=radius, **given)
        assert_same(one, other)
        assert one.forwards < other.forwards < 0.8 * other.forwards_full
    sizes = [len(program.done) for program in two.fast._replays._programs.values()]
    assert len(set(sizes)) >= 2
    assert set(sizes) <= {24, 12, 6, 3}
    again = attack.run(two.fast, x, y, radius=radius, generator=seeded(1))
    two.log()
    assert torch.equal(
        attack.run(two.fast, x, y, radius=radius, generator=seeded(1)).x_adv, again.x_adv
    )
    assert "capture" not in two.log()


class Rowwise(nn.Module):
    """Sums in each sample's own rows: its bits do not depend on what else is in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 192, generator=seeded(8)))

    def forward(self, x: Tensor) -> Tensor:
        return (x.flatten(1)[:, None] * self.weight).sum(2) / 8


def test_a_cycle_needs_a_deterministic_model(made: list[FakeGraphs]) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x + 0.01 * torch.rand_like(x))

    with pytest.raises(ValueError, match="`model` must be deterministic"):
        fa.pgd(LINF, steps=20, stop="cycle")(fa.compile(Noisy()), X, Y)


def test_nothing_runs_between_replays(made: list[FakeGraphs]) -> None:
    """One launch a step: the loop itself touches no tensor, and allocates none."""

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made[0].log.append(str(func))
            return func(*args, **(kwargs or {}))

        @classmethod
        def ignore_compile_internals(cls) -> bool:
            return True

    two = pair(made, small_net())
    for attack, most in ((PGD, 0), (fa.pgd(fa.Linf(0.01), steps=17, stop="fooled"), 4)):
        for _ in range(2):
            attack(two.fast, X)
        program = list(two.fast._replays._programs.values())[-1]
        replayed = program.replay
        assert replayed is not None

        def unseen(replayed: Callable[[], None] = replayed) -> None:
            from torch.utils._python_dispatch import _disable_current_modes

            with _disable_current_modes():
                replayed()

        program.replay = unseen
        two.log()
        with Count():
            attack(two.fast, X)
        log = made[0].log
        first, last = log.index("replay"), len(log) - log[::-1].index("replay")
        ours = [line for line in log[first:last] if line != "replay"]
        assert len(ours) <= most, ours  # before steps 8 and 16: all() and its item()
        assert log[first:last].count("replay") == attack.steps
