"""The captured step against the ordinary loop, bit for bit, on a stand-in for the device.

What is tested is what is captured and what a replay computes; CUDA's own capture is tests/gpu's.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from conftest import seeded
from fake_graph import FakeGraphs
from stand_in import small_net, standing_in
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastadv as fa
from fastadv.engine import Compiled, replay

G = seeded(2)
X, Y = torch.rand(9, 3, 8, 8, generator=G), torch.randint(0, 5, (9,), generator=G)
LINF, PGD = fa.Linf(0.1), fa.pgd(fa.Linf(0.1), steps=4)
ATTACKS = {
    "linf": PGD,
    "l2": fa.pgd(fa.L2(0.5), steps=4),
    "l1": fa.pgd(fa.L1(4.0), steps=4),
    "no box": fa.pgd(fa.L2(0.5, bounds=None), steps=4),
    "channels": fa.pgd(fa.Linf(0.1, bounds=((0.0, -0.1, 0.0), (1.0, 1.0, 1.1))), steps=4),
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
AIMS: dict[str, dict[str, Tensor]] = {
    "y": {"y": Y},
    "target": {"y": Y, "target": (Y + 1) % 5},
    "none": {},
    "radii": {"y": Y, "radius": torch.linspace(0.0, 0.05, len(X))},
    "labels of another type": {"y": Y.to(torch.uint8)},
}
CASES = [(name, "y") for name in ATTACKS]
CASES += [(name, aim) for name in ("linf", "fooled") for aim in AIMS if aim != "y"]


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


@pytest.fixture(scope="module")
def made() -> Iterator[list[FakeGraphs]]:
    with standing_in() as made:
        yield made


@pytest.fixture(scope="module")
def shared(made: list[FakeGraphs]) -> Pair:
    """For tests that leave the model as it is; compiled once."""
    return Pair(fa.compile(net := small_net(), graph=False), fa.compile(net, graph=True), made)


def assert_same(one: fa.AttackResult, other: fa.AttackResult) -> None:
    assert torch.equal(one.x_adv, other.x_adv)
    assert torch.equal(one.success, other.success)
    assert torch.equal(one.loss, other.loss)


@pytest.mark.parametrize(("name", "aim"), CASES)
def test_a_replay_is_the_ordinary_loop(name: str, aim: str, shared: Pair) -> None:
    attack = ATTACKS[name]
    one, other = shared.run(attack, **AIMS[aim])
    assert_same(one, other)
    assert attack.stop or one.forwards == other.forwards
    log = shared.log()
    assert log.count("capture") in (0, 1)  # 0: it was captured for another aim
    assert attack.stop or log.count("replay") == attack.steps * attack.restarts


def test_a_stop_is_looked_for_every_few_steps(made: list[FakeGraphs]) -> None:
    two = pair(made, small_net())
    attack = fa.pgd(LINF, steps=60, stop="fooled")
    wrong = (two.plain.module(X).argmax(1) + 1) % 5
    one, other = two.run(attack, y=wrong)
    assert_same(one, other)
    assert two.log().count("replay") == 8  # all are fooled at the start, and seen to be before 8
    assert other.forwards == (8 + 1) * len(X)
    assert_same(*two.run(attack, y=wrong.roll(1)))


def test_shapes_dtypes_and_layouts_are_captured_apart(made: list[FakeGraphs]) -> None:
    two = pair(made, small_net())
    for x in (X, X[:5], X.contiguous(memory_format=torch.channels_last), X[:, :, :6, :6]):
        for _ in range(2):
            assert_same(*two.run(PGD, x, y=Y[: len(x)]))
    assert two.log().count("capture") == 4


def test_the_number_of_captured_steps_is_bounded(
    made: list[FakeGraphs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "KEPT", 2)
    two = pair(made, small_net())
    for n in (9, 8, 7, 9):
        assert_same(*two.run(PGD, X[:n], y=Y[:n]))
        assert len(two.fast._replays._programs) <= 2
    assert two.log().count("capture") == 4


def test_another_size_is_captured_when_it_comes_again(made: list[FakeGraphs]) -> None:
    """As the last batch of a loader, and who is left for a restart."""
    made.clear()
    fast = fa.compile(small_net())
    seen = []
    for n in (9, 4, 9, 4, 4):
        PGD(fast, X[:n], Y[:n])
        seen.append("replayed" in str(fast.report()))
    assert seen == [True, False, True, True, True]
    PGD(fast, X[:3], Y[:3])
    assert "its batch has this size for the first time" in str(fast.report())
    assert made[0].log.count("capture") == 2


def test_new_data_labels_targets_and_radii_are_read(shared: Pair) -> None:
    for seed in range(3):
        g = seeded(seed)
        x, y = torch.rand(9, 3, 8, 8, generator=g), torch.randint(0, 5, (9,), generator=g)
        radius = torch.rand(9, generator=g) / 10
        assert_same(*shared.run(PGD, x, y=y, target=(y + 1) % 5, radius=radius))


WRITES: dict[str, Callable[[nn.Parameter], object]] = {
    "in place": lambda p: p.data.add_(0.1),
    "numpy": lambda p: p.detach().numpy().__imul__(0.5),
    "new memory": lambda p: setattr(p, "data", p.data * 0.7),
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_changed_between_attacks_are_seen(precision: str, made: list[FakeGraphs]) -> None:
    made.clear()
    model = small_net()
    plain = fa.compile(model, precision, graph=False)
    fast = fa.compile(model, precision, graph=True)
    results = []
    for write in (lambda p: None, *WRITES.values()):
        for parameter in model.parameters():
            write(parameter)
        results.append(PGD.run(fast, X, Y, generator=seeded(1)))
        assert_same(PGD.run(plain, X, Y, generator=seeded(1)), results[-1])
        with torch.no_grad():
            model.norm.running_mean.add_(0.2)
    assert len({float(r.loss.sum()) for r in results}) == len(results)
    assert made[0].log.count("capture") == 2  # new memory is captured anew, the rest read in place


def test_a_replaced_module_and_parameter_are_seen(made: list[FakeGraphs]) -> None:
    two = pair(made, small_net())
    two.run(PGD, y=Y)
    two.plain.module.second.weight = nn.Parameter(torch.randn(6, 6, 3, 3))
    assert_same(*two.run(PGD, y=Y))
    two.plain.module.out = nn.Linear(6, 5)
    assert_same(*two.run(PGD, y=Y))
    assert two.log().count("capture") == 3


class Wrapped(nn.Module):
    """Does something more at each forward."""

    def __init__(self, more: Callable[[nn.Module, Tensor], object]) -> None:
        super().__init__()
        self.net, self.more = small_net(), more
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        self.more(self, z.detach())
        return z


def replaces(module: nn.Module, z: Tensor) -> None:
    module.calls = module.calls + 1


CANNOT: dict[str, tuple[str, Callable[[nn.Module, Tensor], object]]] = {
    "item": ("reads a number on the host", lambda m, z: z.sum().item()),
    "nonzero": ("depends on the data: nonzero", lambda m, z: (z > 0).nonzero()),
    "booleans": ("an index of booleans", lambda m, z: z[z > 0]),
    "tolist": ("reads on the host: .tolist", lambda m, z: z.tolist()),
    "buffer": ("a new tensor in the place of its calls", replaces),
}


@pytest.mark.parametrize("name", CANNOT)
@pytest.mark.filterwarnings("ignore:.*")  # of Dynamo's graph breaks
def test_what_cannot_be_captured_warns_once_and_runs_or_raises(
    name: str, made: list[FakeGraphs]
) -> None:
    why, more = CANNOT[name]
    torch._dynamo.reset()  # a graph break leaves frames of Wrapped's own code, which are counted
    model = Wrapped(torch.compiler.disable(more))
    expected = PGD.run(fa.compile(model, graph=False), X, Y, generator=seeded(1))
    fast = fa.compile(model)
    with pytest.warns(UserWarning, match=f"cannot be captured in a CUDA graph.*{why}"):
        assert_same(expected, PGD.run(fast, X, Y, generator=seeded(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(expected, PGD.run(fast, X, Y, generator=seeded(1)))
    assert "went step by step, not captured" in str(fast.report())
    with pytest.raises(RuntimeError, match=f"graph=True, but .* cannot be captured: .*{why}"):
        PGD(fa.compile(model, graph=True), X, Y)


def test_attacks_that_are_not_captured(made: list[FakeGraphs]) -> None:
    model = small_net()
    fast, strict = fa.compile(model), fa.compile(model, graph=True)
    for attack, why in (
        (fa.apgd(LINF, steps=5), "apgd goes by the losses"),
        (fa.pgd(LINF, steps=5, stop="cycle"), "stop='cycle' keeps a history"),
        (fa.pgd(LINF, steps=0), "it has no steps"),
    ):
        expected = attack.run(fa.compile(model, graph=False), X, Y, generator=seeded(1))
        assert_same(expected, attack.run(fast, X, Y, generator=seeded(1)))
        assert why in str(fast.report())
        with pytest.raises(RuntimeError, match=why):
            attack(strict, X, Y)
    with pytest.raises(TypeError, match="`graph` must be None, True or False, got 'yes'"):
        fa.compile(model, graph="yes")


def test_a_capture_leaves_the_model_and_the_generator_as_they_were(
    made: list[FakeGraphs],
) -> None:
    model = small_net()
    before = copy.deepcopy(model.state_dict())
    fast = fa.compile(model, graph=True)
    attack = fa.pgd(LINF, steps=3, mode="train")
    torch.manual_seed(3)
    first = attack(fast, X, Y, generator=seeded(1))  # captures
    after = torch.get_rng_state()
    torch.manual_seed(3)
    assert torch.equal(attack(fast, X, Y, generator=seeded(1)), first)  # replays what it captured
    assert torch.equal(torch.get_rng_state(), after)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_nan_is_met_after_the_replays(made: list[FakeGraphs]) -> None:
    model = small_net()
    fast = fa.compile(model, graph=True)
    PGD(fast, X, Y)
    with torch.no_grad():
        model.out.bias[0] = torch.nan
    with pytest.raises(ValueError, match="`model` gave NaN"):
        PGD(fast, X, Y)
    with pytest.raises(ValueError, match="`y` must be in"):
        PGD(fast, X, Y + 5)


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
