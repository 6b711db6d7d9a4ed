"""A whole attack on a dense stack, compiled to PTX and run in the emulator through its launcher.

Against float64's autograd a sign may differ only where the gradient is within what rounded factors
move it by; against the op's definition, which rounds bfloat16 factors as the kernel does, in l2.
"""

from __future__ import annotations

import pytest
import torch

from fastadv import reference

pytest.importorskip("triton")
from fastadv.kernels.dense_plan import TILES, Device, Tile, lay_out, tile_for
from tests.emulator.dense_cases import Net, bound, gradient, tile
from tests.emulator.device import emulated

HOPPER = Device(132, 232448, 90)
SMALL = Tile(16, 16, 16, 4)


def flips(net: Net, x_adv: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """Where x_adv is not the reference's step along a gradient."""
    expected = net.x.clone()
    reference.step_linf_(expected, grad.float(), net.x, net.step_size, net.radius, net.bounds, True)
    return x_adv != expected


@pytest.mark.parametrize(("net", "chosen"), [
    (Net((784, 256, 256, 10), 40), TILES[2, 256][0]),
    (Net((784, 256, 256, 10), 20), TILES[2, 256][2]),
    (Net((784, 256, 256, 10), 20, "tf32"), TILES[4, 256][0]),
    pytest.param(Net((784, 512, 512, 10), 20), TILES[2, 512][0], marks=pytest.mark.slow),
    (Net((61, 40, 19, 10), 33, "tf32"), None),
    (Net((49, 40, 19, 21, 10), 33), None),
])  # fmt: skip
def test_signs_are_float64s_but_near_zero(net, chosen):
    with tile(chosen), emulated() as device:
        x_adv, seen = net.emulated(1)
    grad, off = gradient(net, net.x), bound(net, net.x)
    flipped = flips(net, x_adv, grad)
    assert not bool((flipped & (grad.abs() > off)).any())
    assert float(flipped.double().mean()) <= 0.03
    assert float((grad.abs() > off).double().mean()) >= 0.25  # the bound says something
    assert not seen.isnan().any()
    assert len(device.launches) == 1
    assert device.launches[0].stats.warps("mma.sync") > 0


CASES = [
    Net((33, 40, 19, 10), 20), Net((33, 40, 19, 10), 20, "tf32", norm=1),
    Net((37, 50, 10), 17, norm=1), Net((20, 5), 5, leak=0.1), Net((20, 17, 3), 5, "tf32", leak=0.1),
    Net((21, 20, 33, 18, 10), 17, norm=1), Net((21, 20, 33, 18, 40, 10), 17),
    *[Net((21, 20, 33, 7), 17, head=head, targeted=targeted, seed=4)  # dlr is flat if y is third
      for head, targeted in ((0, True), (1, False), (2, True), (3, False), (3, True), (4, False))],
]  # fmt: skip


@pytest.mark.parametrize("net", CASES, ids=repr)
def test_three_steps_are_the_definitions(net):
    """Depths, balls, heads, odd sizes, a last program that is not full, per-sample radii."""
    with tile(SMALL), emulated() as device:
        x_adv, seen = net.emulated(3)
    expected, _ = net.expected(3)
    away = x_adv.double() - net.x.double()
    if net.norm == 0:
        assert float((x_adv != expected).double().mean()) <= 0.01
        assert bool((away.abs() <= net.radius[:, None].double()).all())
    else:  # the definition's TF32 is float32, and a ReLU may be on either side
        near = 1e-5 if net.dtype == "bfloat16" else 1e-2
        assert float((x_adv - expected).abs().median()) <= near
        assert bool((away.norm(dim=1) <= net.radius.double()).all())
    assert bool(((x_adv >= 0) & (x_adv <= torch.tensor(0.95))).all())
    assert float(away.abs().max()) > 0.02
    assert not seen.isnan().any()
    assert len(device.launches) == 1


def test_the_bytes_of_a_step():
    """x and x_adv are read once and x_adv is written once a step, and once more at the start the
    first layer's weights and x_adv; the layers between are read twice a step."""
    net, steps, chosen = Net((784, 256, 256, 10), 32), 2, TILES[2, 256][2]
    with tile(chosen), emulated() as device:
        net.emulated(steps)
    stats, once = device.launches[0].stats, 4 * net.x.numel()
    x_adv, x, weights = 0, 2, 6  # among the arguments
    assert stats.loaded[x_adv] == (steps + 1) * once
    assert stats.stored[x_adv] == steps * once
    assert stats.loaded[x] == steps * once
    stack = lay_out(net.sizes, (0.0, 0.0, 1.0), chosen)
    first, *others = (2 * r * w for r, w in zip(stack.rows, stack.widths, strict=True))
    assert stats.loaded[weights] == 2 * ((steps + 1) * first + 2 * steps * sum(others))  # programs


def test_what_is_no_number_is_seen():
    for where, sample in ((0, None), (1, 3)):
        net = Net((21, 20, 33, 7), 17)
        if sample is None:
            net.biases[-1][2] = torch.inf  # a first logit
        else:
            net.x[sample, 5] = torch.nan
        with tile(SMALL), emulated():
            _, seen = net.emulated(2)
        expected = torch.ones(17, dtype=torch.bool) if sample is None else torch.arange(17) == 3
        assert torch.equal(seen.isnan(), expected), where


def test_labels_out_of_range_are_seen_and_move_nothing():
    net = Net((21, 20, 33, 7), 17)
    net.y[4], net.y[5] = 7, -1
    with tile(SMALL), emulated():
        x_adv, seen = net.emulated(2)
    assert seen.isnan().nonzero().flatten().tolist() == [4, 5]
    assert torch.equal(x_adv[4:6], net.x[4:6])
    assert float((x_adv - net.x)[:4].abs().amax(1).min()) > 0


def test_bounds_of_channels_and_none():
    for bounds in (None, torch.tensor([[0.1, 0.0, 0.3], [0.7, 0.9, 0.8]])):
        net = Net((12, 20, 4), 6)
        net.x = net.x.view(6, 3, 4)
        net.x = net.x if bounds is None else net.x.clamp(bounds[0][:, None], bounds[1][:, None])
        net.bounds = bounds
        with tile(SMALL), emulated():
            x_adv, _ = net.emulated(2)
        assert torch.equal(x_adv, net.expected(2)[0])


def test_gradients_whose_squares_leave_the_numbers():
    """In l2 they are taken in units of their largest element: see step_l2.py."""
    net = Net((21, 20, 7), 5, norm=1)
    net.weights = [net.weights[0] * 1e-30, net.weights[1] * 1e-5]
    with tile(SMALL), emulated():
        x_adv, _ = net.emulated(2)
    expected = net.expected(2)[0]
    assert float((x_adv - expected).abs().max()) <= 1e-5
    assert float((x_adv - net.x).norm(dim=1).min()) > 0.05


def test_the_choice_of_tiles():
    mlp = (784, 256, 256, 10)
    assert tile_for(mlp, 2, 1 << 20, HOPPER).rows == 64
    assert tile_for(mlp, 2, 132 * 32, HOPPER).rows == 32
    assert tile_for(mlp, 2, 100, HOPPER).rows == 16
    assert tile_for((784, 256, 10), 2, 1 << 20, HOPPER).rows == 32
    assert tile_for((785, 256, 256, 10), 2, 1 << 20, HOPPER).rows == 32
    assert tile_for(mlp, 2, 1 << 20, Device(148, 232448, 100)).rows == 32
    assert tile_for((784, 512, 512, 10), 4, 1 << 20, HOPPER).rows == 32
    assert tile_for((784, 512, 512, 10), 4, 1 << 20, Device(128, 101376, 89)).rows == 16
