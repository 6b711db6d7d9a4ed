"""fa.compile and the captured step on the device."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import seeded
from gpu_plugin import DEVICE, on_cuda
from stand_in import small_net
from torch import Tensor, nn

import fastadv as fa

X = torch.rand(32, 3, 8, 8, generator=seeded(0)).to(DEVICE)
Y = (torch.arange(32) % 5).to(DEVICE)
LINF = fa.Linf(0.05)
ATTACKS = {
    "linf": fa.pgd(LINF, steps=6),
    "l2": fa.pgd(fa.L2(0.5), steps=6),
    "l1": fa.pgd(fa.L1(6.0), steps=6),
    "schedule": fa.Attack(LINF, fa.Steepest((0.03, 0.02, 0.01)), 6),
    "momentum": fa.mi_fgsm(LINF, steps=6),
    "adam": fa.Attack(LINF, fa.Adam(0.01), 6),
    "restarts": fa.pgd(LINF, steps=4, restarts=3),
    "dlr": fa.pgd(LINF, steps=6, objective=fa.dlr),
    "train": fa.pgd(LINF, steps=6, mode="train"),
    "fooled": fa.pgd(fa.Linf(0.02), steps=20, stop="fooled"),
    "resolved": fa.pgd(fa.Linf(0.02), steps=40, stop="resolved"),
}
AIMS = {"y": {"y": Y}, "target": {"target": Y}, "none": {}}
AIMS["radii"] = {"y": Y, "radius": torch.linspace(0.0, 0.05, len(X)).to(DEVICE)}


def gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    loss = F.cross_entropy(logits.float(), Y[: len(x)], reduction="sum")
    return logits.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("layout", ["plain", "last"])
def test_gradients_are_the_models(layout: str) -> None:
    model = small_net().to(DEVICE)
    fast = fa.compile(model)
    x = X.contiguous(memory_format=torch.channels_last) if layout == "last" else X
    for n in (32, 20, 1, 3):
        for ours, exact in zip(gradient(fast, x[:n]), gradient(model, x[:n]), strict=True):
            room = 1e-4 * float(exact.abs().max())
            torch.testing.assert_close(ours, exact, rtol=1e-3, atol=room)
    assert "inductor" in str(fast.report())


def test_bfloat16_is_near() -> None:
    model = small_net().to(DEVICE)
    ours, exact = gradient(fa.compile(model, "bfloat16"), X), gradient(model, X)
    assert float((ours[0] - exact[0]).norm() / exact[0].norm()) < 0.03
    assert float((ours[1] - exact[1]).norm() / exact[1].norm()) < 0.1


@pytest.mark.parametrize("aim", AIMS)
@pytest.mark.parametrize("name", ATTACKS)
def test_a_replay_is_the_ordinary_loop(name: str, aim: str) -> None:
    model, results = small_net().to(DEVICE), []
    for graph in (False, True):
        fast = fa.compile(model, graph=graph)
        for _ in range(2):  # the second one captures nothing
            torch.manual_seed(1)  # of a dropout
            results.append(ATTACKS[name].run(fast, X, generator=seeded(1), **AIMS[aim]))
    assert "replayed a captured step" in str(fast.report())
    for result in results[1:]:
        if ATTACKS[name].stop:  # batches shrink at other steps, and may take other kernels
            assert torch.equal(result.success, results[0].success)
            torch.testing.assert_close(result.loss, results[0].loss, rtol=1e-2, atol=1e-2)
        else:
            assert torch.equal(result.x_adv, results[0].x_adv)
            assert torch.equal(result.success, results[0].success)
            assert torch.equal(result.loss, results[0].loss)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_changed_weights_and_shapes_are_seen(precision: str) -> None:
    model = small_net().to(DEVICE)
    plain = fa.compile(model, precision, graph=False)
    fast = fa.compile(model, precision, graph=True)
    attack = ATTACKS["linf"]
    losses = []
    for n in (32, 20, 32):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.data.mul_(1.1)
        x, y = X[:n], Y[:n]
        expected, got = (attack.run(m, x, y, generator=seeded(1)) for m in (plain, fast))
        assert torch.equal(got.x_adv, expected.x_adv)
        losses.append(float(got.loss.mean()))
    assert len(set(losses)) == 3


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        read(z)
        return z


@torch.compiler.disable
def read(z: Tensor) -> None:
    z.detach().sum().item()


@pytest.mark.filterwarnings("ignore:.*")  # of Dynamo's graph break
def test_what_cannot_be_captured_says_so_and_spoils_nothing() -> None:
    model = Reads().to(DEVICE).eval()
    attack = ATTACKS["linf"]
    expected = attack(fa.compile(model, graph=False), X, Y, generator=seeded(1))
    fast = fa.compile(model)
    with pytest.warns(UserWarning, match="cannot be captured in a CUDA graph"):
        assert torch.equal(attack(fast, X, Y, generator=seeded(1)), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(attack(fast, X, Y, generator=seeded(1)), expected)
    with pytest.raises(RuntimeError, match="graph=True, but"):
        attack(fa.compile(model, graph=True), X, Y)
    other = small_net().to(DEVICE)
    good = ATTACKS["linf"](fa.compile(other, graph=True), X, Y, generator=seeded(1))
    assert torch.equal(good, attack(fa.compile(other, graph=False), X, Y, generator=seeded(1)))


@on_cuda
def test_replays_on_two_streams_in_turn() -> None:
    fast = fa.compile(small_net().to(DEVICE), graph=True)
    attack = ATTACKS["linf"]
    inputs = [X, X.flip(0)]
    expected = [attack(fast, x, Y, generator=seeded(1)) for x in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    results: list[list[Tensor]] = [[], []]
    for _ in range(5):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[i].append(attack(fast, inputs[i], Y, generator=seeded(1)))
    torch.cuda.synchronize()
    for got, e in zip(results, expected, strict=True):
        assert all(torch.equal(x_adv, e) for x_adv in got)


@on_cuda
def test_one_launch_a_step() -> None:
    fast = fa.compile(small_net().to(DEVICE), graph=True)
    attack = ATTACKS["linf"]
    for _ in range(2):
        attack(fast, X, Y)
    with torch.profiler.profile() as profile:
        attack(fast, X, Y)
    names = [event.name for event in profile.events()]
    assert names.count("cudaGraphLaunch") == attack.steps
