"""dense_pgd_: the op against its definition, attacks against the loop that goes step by step."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import isas
import pytest
import torch
from conftest import seeded, threads
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import reference_dense
from fastadv.engine.dense_plan import multiplies_bfloat16
from fastadv.engine.reference_dense import DENSE, pack, pack_bias

pytestmark = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")

SIZES = [(17, 5, 1), (1, 3), (33, 16, 4), (20, 40, 19, 10)]
MODULES = (
    nn.Identity(), nn.ReLU(), nn.LeakyReLU(0.2), nn.GELU(), nn.GELU("tanh"), nn.Tanh(),
    nn.Sigmoid(),
)  # fmt: skip
BALLS = {"linf": fa.Linf(0.1), "l2": fa.L2(0.5), "l1": fa.L1(1.0)}


def net(sizes: tuple[int, ...], activation: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers += [nn.Linear(inputs, outputs, bias=i != 1), copy.deepcopy(activation)]
    return nn.Sequential(*layers[:-1])


def arrays(model: nn.Sequential, activation: int, bfloat16: bool) -> tuple[Any, ...]:
    """What the op takes of the layers."""
    linears = [m for m in model if isinstance(m, nn.Linear)]
    weights = [m.weight.detach() for m in linears]
    count = len(linears)
    return (
        [pack(w, bfloat16) for w in weights],
        [pack(w.T, bfloat16) for w in weights],
        [pack_bias(m.bias, m.weight.detach()) for m in linears],
        [weights[0].shape[1], *map(len, weights)],
        [activation] * (count - 1) + [0],
        [0.2] * count,
    )


def labels(head: int, samples: int, classes: int) -> Tensor:
    if head == 1:
        return torch.rand(samples, classes, generator=seeded(3)).round()
    if head == 4:
        return torch.rand(samples, classes, generator=seeded(3)).softmax(1)
    return torch.arange(samples) % classes


def precisions() -> list[bool]:
    return [False, True] if multiplies_bfloat16() else [False]


@pytest.mark.parametrize("bfloat16", precisions())
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("activation", range(len(DENSE)))
def test_the_op_is_its_definition(activation: int, sizes: tuple[int, ...], bfloat16: bool) -> None:
    """In l2, where a rounding moves a point by as much. Sums are ordered differently, no more."""
    model = net(sizes, MODULES[activation])
    x = torch.rand(9, sizes[0], generator=seeded(1))
    stack = arrays(model, activation, bfloat16)
    head = 1 if sizes[-1] == 1 else 0
    y, bounds = labels(head, len(x), sizes[-1]), torch.tensor([0.0, 1.0])
    numbers = torch.full((9,), 0.1), torch.linspace(0, 1, 9)
    results = []
    for op in (torch.ops.fastadv.dense_pgd_, reference_dense.dense_pgd_):
        x_adv, seen = x.clone(), torch.zeros(9)
        op(x_adv, seen, x, *numbers, bounds, 1, 0.1, 3, *stack, y, None, head, False)
        assert not seen.isnan().any()
        results.append(x_adv)
    allowed = 2e-2 if bfloat16 else 2e-5  # a rounding to bfloat16 may fall to either side
    assert float((results[0] - results[1]).abs().max()) <= allowed
    assert float((results[0] - x).abs().max()) > 0


@pytest.mark.parametrize("activation", range(1, len(DENSE)))
def test_slopes_are_float64s(activation: int) -> None:
    """Of activation(z_1) + activation(z_2) the gradient is the slopes, and a long l2 step from
    (z_1, 1) shows their ratio."""
    z = torch.stack([torch.linspace(-9, 9, 4001), torch.ones(4001)], 1)
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Identity(), nn.Linear(2, 2))
    for p, v in zip(model.parameters(), ([[1, 0], [0, 1]], [[1, 1], [0, 0]], [0, 0]), strict=True):
        p.data.copy_(torch.tensor(v))
    x_adv, seen, y = z.clone(), torch.zeros(4001), torch.ones(4001, dtype=torch.long)
    torch.ops.fastadv.dense_pgd_(
        x_adv, seen, z, torch.tensor(1e5), torch.tensor(1e9), None, 1, 1.0, 1,
        *arrays(model, activation, False), y, None, 2, False,
    )  # fmt: skip
    leaf = z.double().requires_grad_()
    (slope,) = torch.autograd.grad(MODULES[activation](leaf).sum(), leaf)
    moved = (x_adv - z).double()
    error = (moved[:, 0] / moved[:, 1] - slope[:, 0] / slope[:, 1]).abs()
    assert float(error.max()) <= 2e-6


@pytest.mark.parametrize("order", BALLS)
@pytest.mark.parametrize("activation", [3, 4, 5, 6])
def test_a_smooth_net_gives_the_points_of_float64(order: str, activation: int) -> None:
    model = net((17, 24, 11, 5), MODULES[activation])
    x, y = torch.rand(23, 17, generator=seeded(1)), torch.arange(23) % 5
    attack = fa.pgd(BALLS[order], 0.1, 8)
    found = attack(fa.compile(model), x, y, generator=seeded(2))
    exact = attack(copy.deepcopy(model).double(), x.double(), y, generator=seeded(2))
    # The random start of float64 is another one in its last bits.
    step_by_step = attack(model, x, y, generator=seeded(2))
    assert float((found - step_by_step).abs().max()) <= 1e-4
    with torch.no_grad():
        losses = [nn.functional.cross_entropy(model(v.float()), y) for v in (found, exact)]
    assert abs(float(losses[0] - losses[1])) <= 1e-2
    assert bool((fa.verify(model, x, found, y, BALLS[order]).distance <= attack.ball.radius).all())


@pytest.mark.parametrize("order", BALLS)
@pytest.mark.parametrize("objective", [fa.cross_entropy, fa.margin, fa.dlr, fa.kl])
@pytest.mark.parametrize("targeted", [False, True])
def test_every_ball_and_objective(order: str, objective: Any, targeted: bool) -> None:
    """Per-sample radii, restarts, a schedule; flips of a ReLU part the points, not the losses."""
    model = net((30, 32, 20, 6), nn.ReLU())
    fast = fa.compile(model)
    x, y = torch.rand(40, 30, generator=seeded(1)), torch.arange(40) % 6
    y = labels(4, 40, 6) if objective is fa.kl else y
    target = (y.roll(1, 1) if y.dim() == 2 else (y + 1) % 6) if targeted else None
    attack = fa.pgd(BALLS[order], (0.1, 0.1, 0.05, 0.02), 6, objective=objective, restarts=2)
    radius = torch.linspace(0, 1, 40) * attack.ball.radius
    found = attack.run(fast, x, y, target=target, radius=radius, generator=seeded(2))
    expected = attack.run(model, x, y, target=target, radius=radius, generator=seeded(2))
    assert "in one call" in str(fast.report())
    assert "step by step" not in str(fast.report())
    assert found.forwards == expected.forwards
    assert torch.equal(found.x_adv[0], x[0])
    distance = attack.ball.norm(found.x_adv.double() - x.double())
    assert bool((distance <= radius.double()).all())
    assert bool(((found.x_adv >= 0) & (found.x_adv <= 1)).all())
    assert float((found.loss - expected.loss).abs().median()) <= 1e-5


@pytest.mark.parametrize("order", BALLS)
def test_steps_are_the_ordinary_steps_to_the_bit(order: str) -> None:
    """Weights of small integers: every sum is exact, so every gradient's bits are the same."""
    model = nn.Sequential(nn.Linear(50, 20), nn.ReLU(), nn.Linear(20, 7))
    for p in model.parameters():
        p.data = torch.randint(-3, 4, p.shape, generator=seeded(4)).float()
    x, y = torch.randint(0, 65, (31, 50), generator=seeded(1)) / 64, torch.arange(31) % 7
    attack = fa.pgd(
        type(BALLS[order])(BALLS[order].radius, bounds=(0.0, 0.75 + 0.25)), 0.05, 1,
        objective=fa.margin, start="zero",
    )  # fmt: skip
    assert torch.equal(attack(fa.compile(model), x, y), attack(model, x, y))


@pytest.mark.parametrize("bfloat16", precisions())
def test_a_sample_does_not_depend_on_its_batch(bfloat16: bool) -> None:
    """Nor on the threads: 150 samples are cut into blocks, and those into groups of rows."""
    model = net((37, 45, 21, 10), nn.ReLU())
    fast = fa.compile(model, precision="bfloat16" if bfloat16 else "float32")
    x, y = torch.rand(150, 37, generator=seeded(1)), torch.arange(150) % 10
    attack = fa.pgd(fa.L2(0.5), 0.1, 7, start="zero")
    whole = attack(fast, x, y)
    for part in (slice(0, 1), slice(3, 20), slice(60, 117), slice(149, 150)):
        assert torch.equal(attack(fast, x[part], y[part]), whole[part])
    with threads(3):
        assert torch.equal(attack(fast, x, y), whole)


def test_no_steps_no_samples_one_sample() -> None:
    fast = fa.compile(net((12, 8, 3), nn.ReLU()))
    x, y = torch.rand(5, 12), torch.arange(5) % 3
    assert torch.equal(fa.pgd(fa.Linf(0.1), 0.1, 0, start="zero")(fast, x, y), x)
    assert fa.pgd(fa.Linf(0.1))(fast, x[:0], y[:0]).shape == (0, 12)
    assert fa.pgd(fa.Linf(0.1))(fast, x[:1], y[:1]).shape == (1, 12)


def test_one_logit_and_many_labels() -> None:
    for outputs in (1, 4):
        model = net((9, 6, outputs), nn.Tanh())
        x = torch.rand(8, 9, generator=seeded(1))
        y = (torch.rand(8, outputs, generator=seeded(2)) > 0.5).long()
        attack = fa.pgd(fa.L2(0.5), 0.2, 5, objective=fa.binary_cross_entropy, start="zero")
        found, expected = attack(fa.compile(model), x, y), attack(model, x, y)
        assert float((found - expected).abs().max()) <= 1e-5


def test_bounds_for_each_channel() -> None:
    model = nn.Sequential(nn.Flatten(), *net((12, 8, 3), nn.Sigmoid()))
    x, y = 0.4 + 0.2 * torch.rand(6, 3, 2, 2, generator=seeded(1)), torch.arange(6) % 3
    ball = fa.Linf(0.3, bounds=((0.3, 0.2, 0.4), (0.6, 0.7, 0.61)))
    attack = fa.pgd(ball, 0.1, 6, start="zero")
    found = attack(fa.compile(model), x, y)
    assert torch.equal(found, attack(model, x, y))
    assert bool((found.amin((0, 2, 3)) >= torch.tensor([0.3, 0.2, 0.4])).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_raise(value: float) -> None:
    model = net((6, 5, 4, 3), nn.ReLU())
    fast, x, y = fa.compile(model), torch.rand(4, 6), torch.arange(4) % 3
    attack = fa.pgd(fa.Linf(0.1), 0.02, 3, objective=fa.margin)
    attack(fast, x, y)
    model[-1].bias.data[2] = value  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="NaN"):
        attack(fast, x, y)


def test_wrong_labels_raise_as_ever() -> None:
    fast, x = fa.compile(net((6, 5, 3), nn.ReLU())), torch.rand(4, 6)
    with pytest.raises(ValueError, match=r"`y` must be in \[0, 3\), got 3 for sample 1"):
        fa.pgd(fa.Linf(0.1))(fast, x, torch.tensor([0, 3, 1, 2]))


def test_the_op_stays_in_its_memory() -> None:
    stack = arrays(net((6, 5, 3), nn.ReLU()), 1, False)
    x, y = torch.rand(4, 6), torch.arange(4) % 3
    numbers = torch.tensor(0.1), torch.tensor(0.1)

    def call(stack: Any, x: Tensor, y: Tensor, *, head: int = 0) -> None:
        torch.ops.fastadv.dense_pgd_(
            x.clone(), torch.zeros(4), x, *numbers, None, 0, 0.1, 1, *stack, y, None, head, False
        )

    call(stack, x, y)
    short = [stack[0][0][:, :-1].contiguous(), *stack[0][1:]]
    for wrong in (
        ((short, *stack[1:]), x, y),
        ((*stack[:3], [6, 16, 3], *stack[4:]), x, y),
        ((*stack[:4], [9, 0], stack[5]), x, y),
        (stack, x[:, :5].contiguous(), y),
        (stack, x.double(), y),
        (stack, x, y[:3]),
        (stack, x, y.float()),
    ):
        with pytest.raises(RuntimeError, match="must"):
            call(*wrong)
    with pytest.raises(RuntimeError, match="head"):
        call(stack, x, y, head=7)


@isas.others
def test_every_instruction_set(isa: str) -> None:
    isas.run_again(__file__, isa)
