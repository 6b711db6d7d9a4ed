"""stop="cycle" and "resolved": what leaves early ends where the full run would, to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fastadv as fa
from fastadv import ops

FREE = fa.Linf(1e3, None)  # a ball that never binds


class _Walk(torch.autograd.Function):
    """Logits (0, 0) with the gradient that leads x from any number v to table[v]."""

    @staticmethod
    def forward(ctx, x: Tensor, table: Tensor, fools: Tensor) -> Tensor:
        state = x[:, 0].round().long()
        ctx.stride = (table[state] - x[:, 0])[:, None]
        return torch.stack([torch.zeros_like(x[:, 0]), 2.0 * fools[state] - 1], 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return ctx.stride, None, None


def walk(table: list[int], fools: frozenset[int] = frozenset()):
    """A model under which fa.Gradient(1) goes from v to table[v], and which `fools` fool."""
    steps = torch.tensor(table, dtype=torch.float64)
    fooling = torch.tensor([v in fools for v in range(len(table))], dtype=torch.float64)
    return lambda x: _Walk.apply(x, steps, fooling)


def paths(table: list[int], start: list[int], steps: int) -> list[list[int]]:
    """The states 0 to `steps` of each sample."""
    found = []
    for v in start:
        path = [v]
        for _ in range(steps):
            path.append(table[path[-1]])
        found.append(path)
    return found


def least(path: list[int], fools: frozenset[int] = frozenset()) -> int:
    """The gradients that detection needs: first repeat plus one period, or up to what fools."""
    steps = len(path) - 1
    until = next((k + 1 for k in range(steps) if path[k] in fools), steps)
    for k in range(1, steps):
        if path[k] in path[:k]:
            return min(until, 2 * k - path.index(path[k]))
    return until


def run_walk(table, start, steps, stop, fools=frozenset()):
    x = torch.tensor(start, dtype=torch.float64)[:, None]
    attack = fa.Attack(FREE, fa.Gradient(1.0), steps, start="zero", stop=stop)
    return attack.run(walk(table, fools), x, torch.zeros(len(start), dtype=torch.long))


@given(
    table=st.lists(st.integers(0, 19), min_size=20, max_size=20),
    steps=st.integers(0, 90),
    fools=st.frozensets(st.integers(0, 19), max_size=3),
)
def test_any_tail_and_period_ends_where_the_full_run_does(table, steps, fools) -> None:
    start = list(range(20))
    routes = paths(table, start, steps)
    got = run_walk(table, start, steps, "cycle", fools)
    assert got.x_adv[:, 0].tolist() == [p[-1] for p in routes]
    assert got.forwards == sum(min(steps, least(p)) for p in routes) + 20  # and the verdict
    assert got.forwards_full == 20 * (steps + 1)
    fooled, resolved = (run_walk(table, start, steps, s, fools) for s in ("fooled", "resolved"))
    for name in ("x_adv", "success", "loss"):
        assert torch.equal(getattr(resolved, name), getattr(fooled, name)), name
    assert resolved.forwards == sum(min(steps, least(p, fools)) for p in routes) + 20
    assert resolved.forwards_full == fooled.forwards_full == got.forwards_full
    assert resolved.success.tolist() == [any(v in fools for v in p) for p in routes]


@pytest.mark.parametrize("period", [1, 2, 3, 5, 64, 97])
@pytest.mark.parametrize("tail", [0, 1, 70])
def test_periods_and_remainders(period: int, tail: int) -> None:
    table = [*range(1, tail + period), tail]
    twice = tail + 2 * period  # from there on one remainder after the other
    for steps in {tail, tail + 1, *range(twice, twice + period + 1, 1 + period // 8)}:
        got = run_walk(table, [0], steps, "cycle")
        assert got.x_adv.item() == paths(table, [0], steps)[0][-1]
        assert got.forwards == min(steps, tail + 2 * period) + 1


def test_a_collision_of_digests_is_no_cycle(monkeypatch) -> None:
    """Iterates 3 and 8 of a long way get one digest; with it, the way goes on to its end."""
    right, calls = ops.digest, []

    def digest(x: Tensor) -> Tensor:
        calls.append(x[:, 0].clone())
        return right(torch.where(x == 8, 3.0, x))

    monkeypatch.setattr(ops, "digest", digest)
    table = [*range(1, 40), 37]
    got = run_walk(table, [0, 5], 200, "cycle")
    assert [v[0].item() for v in calls[:9]] == list(range(9))
    assert got.x_adv[:, 0].tolist() == [p[-1] for p in paths(table, [0, 5], 200)]
    assert got.forwards == (40 + 3) + (35 + 3) + 2


@given(seed=st.integers(0, 2**16), pairs=st.integers(1, 6))
def test_collisions_anywhere_change_nothing(seed: int, pairs: int) -> None:
    g = seeded(seed)
    table = torch.randint(0, 60, (60,), generator=g).tolist()
    merged = torch.arange(60, dtype=torch.float64)
    for a, b in torch.randint(0, 60, (pairs, 2), generator=g).tolist():
        if table[a] != table[b]:  # else what follows is the same, and no digest could tell
            merged[a] = merged[b]
    right = ops.digest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "digest", lambda x: right(merged[x.long()]))
        routes = paths(table, list(range(60)), 150)
        collided = [list(map(int, merged[torch.tensor(p)].tolist())) for p in routes]
        got = run_walk(table, list(range(60)), 150, "cycle")
    for i, (path, seen) in enumerate(zip(routes, collided, strict=True)):
        k = next(k for k in range(1, 150) if path[k] in path[:k])
        false = any(  # two collisions, one period apart, are beyond what is claimed
            seen[a] == seen[b] and seen[a : a + b - a + 1] == seen[b : b + b - a + 1]
            for b in range(1, k)
            for a in range(b)
        )
        assert false or got.x_adv[i].item() == path[-1]


class RowNet(nn.Module):
    """(N, ...) to 3 logits by sums a row, so that no sample's bits depend on its batch."""

    def __init__(self, size: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        g = seeded(9)
        self.first = nn.Parameter(4 * torch.randn(9, size, generator=g).to(dtype) / size**0.5)
        self.last = nn.Parameter(torch.randn(3, 9, generator=g).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.sin((x.flatten(1)[:, None] * self.first).sum(-1))
        return (hidden[:, None] * self.last).sum(-1)


X = torch.rand(40, 6, generator=seeded(1)).double()
RULES = {
    "linf": (fa.Linf(0.2), fa.Steepest(0.03)),
    "l2": (fa.L2(0.4), fa.Steepest(0.05)),
    "l1": (fa.L1(0.6), fa.Steepest(0.1)),
    "gradient": (fa.Linf(0.2), fa.Gradient(0.5)),
    "schedule of one size": (fa.Linf(0.2), fa.Steepest((0.03, 0.03))),
}


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("name", RULES)
def test_results_are_the_full_runs(name: str, restarts: int) -> None:
    model, (ball, rule) = RowNet(6), RULES[name]
    y = model(X).argmax(1)
    target = (y + 1) % 3
    radii = torch.linspace(0, 0.4, 40, dtype=torch.float64)
    stops = {"cycle": None, "resolved": "fooled"}
    saved = 0
    for labels in ({"y": y}, {"target": target}, {"y": y, "radius": radii}, {}):
        for stop, same_as in stops.items():
            attack = fa.Attack(ball, rule, 100, restarts=restarts, stop=stop)
            got = attack.run(model, X, generator=seeded(2), **labels)
            full = replace(attack, stop=same_as).run(model, X, generator=seeded(2), **labels)
            for field in ("x_adv", "success", "loss"):
                assert torch.equal(getattr(got, field), getattr(full, field)), field
            assert got.forwards_full == full.forwards_full == 40 * restarts * 101
            assert got.forwards <= full.forwards
            saved += got.forwards < full.forwards / 2
            x_adv = attack(model, X, generator=seeded(2), **labels)
            assert torch.equal(x_adv, got.x_adv)
    assert saved >= (4 if ball.order == "linf" and rule != fa.Gradient(0.5) else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_and_memory_formats(dtype: torch.dtype) -> None:
    x = torch.rand(12, 3, 2, 4, generator=seeded(3)).to(dtype)
    net = RowNet(24, torch.float32)
    y = net(x.float()).argmax(1)
    attack = fa.bim(fa.Linf(0.2), 0.03, 200)
    full = attack.run(lambda v: net(v.float()), x, y)
    forwards = []
    formats = (x, x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT)
    for t in formats:
        for stop in ("cycle", "resolved"):
            got = replace(attack, stop=stop).run(lambda v: net(v.float()), t, y)
            forwards.append(got.forwards)
            if stop == "cycle":
                assert torch.equal(got.x_adv, full.x_adv)
                assert got.forwards < full.forwards / 2
    assert forwards[:2] == forwards[2:4] == forwards[4:]


def test_convolutions_of_a_compiled_model() -> None:
    """Its own kernels are batch-invariant, and so is a mean over the pixels, a row at a time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        convs = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3))
    fast = fa.compile(convs)
    x = torch.rand(24, 3, 8, 8, generator=seeded(4))

    def model(v: Tensor) -> Tensor:
        n = max(4 - len(v), 0)  # PyTorch's own stem differs below 4 samples
        padded = torch.cat([v, v[:1].expand(n, -1, -1, -1)]) if n else v
        return 30 * fast(padded)[: len(v)].flatten(2).mean(2)

    y = model(x).argmax(1).detach()
    attack = fa.bim(fa.Linf(0.1), 0.03, 120)
    for stop, same_as in (("cycle", None), ("resolved", "fooled")):
        got = replace(attack, stop=stop).run(model, x, y)
        full = replace(attack, stop=same_as).run(model, x, y)
        assert torch.equal(got.x_adv, full.x_adv)
        assert torch.equal(got.success, full.success)
        assert got.forwards < full.forwards


def test_what_has_no_cycles_is_refused() -> None:
    ball = fa.Linf(0.1)
    for stop in ("cycle", "resolved"):
        for rule in (fa.Momentum(0.1), fa.Adam(0.1), fa.Auto(), fa.Steepest((0.1, 0.05))):
            sentence = f"`stop`='{stop}' needs iterates .* got {type(rule).__name__}"
            with pytest.raises(ValueError, match=sentence):
                fa.Attack(ball, rule, stop=stop)
        for mode in ("train", "keep"):
            with pytest.raises(ValueError, match="needs mode='eval'"):
                fa.pgd(ball, stop=stop, mode=mode)


def test_a_random_model_is_refused() -> None:
    net = nn.Sequential(nn.Dropout(0.5), RowNet(6))  # as a callable it is run as it is
    noisy = lambda v: net(v)  # noqa: E731
    before = X.clone()
    for stop in ("cycle", "resolved"):
        attack = fa.pgd(fa.Linf(0.1), stop=stop)
        with pytest.raises(ValueError, match=r"must be deterministic .* draws random numbers"):
            attack(noisy, X, torch.zeros(40, dtype=torch.long))
        attack(net, X, torch.zeros(40, dtype=torch.long))  # a module is put into eval mode
    fa.pgd(fa.Linf(0.1), stop="fooled")(noisy, X, torch.zeros(40, dtype=torch.long))
    assert torch.equal(X, before)


def test_random_state_is_drawn_from_as_by_the_full_run() -> None:
    states = []
    for stop in (None, "cycle", "resolved"):
        g = seeded(6)
        torch.manual_seed(7)
        fa.pgd(fa.Linf(0.2), 0.03, 50, stop=stop)(RowNet(6), X, generator=g)
        fa.bim(fa.Linf(0.2), 0.03, 50, stop=stop)(RowNet(6), X)
        states.append((g.get_state(), torch.get_rng_state()))
    for state in states[1:]:
        assert all(torch.equal(a, b) for a, b in zip(state, states[0], strict=True))


def test_the_split_into_batches_does_not_matter() -> None:
    model, attack = RowNet(6), fa.pgd(fa.Linf(0.2), 0.03, 200, stop="cycle", restarts=2)
    y = model(X).argmax(1)
    whole = attack.run(model, X, y, generator=seeded(8))
    parts = [
        attack.run(model, X[a:b], y[a:b], generator=seeded(8), offset=a)
        for a, b in ((0, 1), (1, 11), (11, 40))
    ]
    assert torch.equal(torch.cat([p.x_adv for p in parts]), whole.x_adv)
    assert sum(p.forwards for p in parts) == whole.forwards


@pytest.mark.parametrize("stop", ["cycle", "resolved"])
def test_empty_batches_no_steps_no_radius(stop: str) -> None:
    model, y = RowNet(6), torch.zeros(40, dtype=torch.long)
    attack = fa.pgd(fa.Linf(0.2), 0.03, 50, stop=stop)
    empty = attack.run(model, X[:0], y[:0])
    assert empty.x_adv.shape == (0, 6)
    assert empty.forwards == empty.forwards_full == 0
    none = replace(attack, steps=0, start="zero").run(model, X, y)
    assert torch.equal(none.x_adv, X)
    assert none.forwards == none.forwards_full == 40
    still = attack.run(model, X, model(X).argmax(1), radius=0.0)
    assert torch.equal(still.x_adv, X)
    assert still.forwards == 40 * 3  # iterates 0, 1 and 2 are one; two gradients and the verdict
