"""`state=`: a killed run of any method goes on to the same result."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import seeded, smooth_net
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastadv as fa

Search = Callable[..., fa.Perturbation]
H, W = 6, 8
SCENE = (torch.arange(H)[:, None] + torch.arange(W)) % 3


class Dies(nn.Module):
    """Is interrupted at a forward."""

    def __init__(self, inner: nn.Module, at: int) -> None:
        super().__init__()
        self.inner, self.left = inner, at

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.inner(x)


def scene_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 3, 1)]
        return nn.Sequential(*layers).double().eval()


def shuffled(x: Tensor, y: Tensor, size: int) -> DataLoader:
    """Another order in each pass, from one seed."""
    return DataLoader(TensorDataset(x, y), size, shuffle=True, generator=seeded(5))


def gradient(model: nn.Module, at: int, steps: int, **more: Any) -> fa.Perturbation:
    """`steps` epochs on 30 samples, in batches of 8."""
    x, y = torch.rand(30, 6, generator=seeded(1)).double(), torch.arange(30) % 3
    rule = more.pop("rule", fa.Momentum(0.02))
    attack = fa.Attack(more.pop("ball", fa.L2(0.5)), rule)
    loader = shuffled(x, y, 8)
    return fa.universal.gradient(
        attack, Dies(model, at), loader, steps, generator=seeded(2), **more
    )


def segmentation(model: nn.Module, at: int, steps: int, **more: Any) -> fa.Perturbation:
    """`steps` steps on 12 samples, in batches of 5."""
    x = torch.rand(12, 3, H, W, generator=seeded(1)).double()
    y = torch.randint(0, 3, (12, H, W), generator=seeded(2))
    ball = more.pop("ball", fa.Linf(0.1))
    return fa.universal.segmentation(ball, Dies(model, at), shuffled(x, y, 5), steps=steps, **more)


def data_free(
    search: Search, model: nn.Module, at: int, steps: int, **more: Any
) -> fa.Perturbation:
    ball = fa.Linf(0.1)
    return search(ball, Dies(model, at), (3, H, W), steps=steps, generator=seeded(2), **more)


CASES: dict[str, tuple[Search, dict[str, Any]]] = {
    "steepest": (gradient, {"rule": fa.Steepest(0.02), "ball": fa.Linf(0.1)}),
    "momentum": (gradient, {}),
    "adam": (gradient, {"rule": fa.Adam(0.02), "per_class": 3}),
    "static": (segmentation, {"target": SCENE}),
    "tiles": (segmentation, {"target": fa.universal.Remove(1), "tile": (3, 4)}),
    "two batches": (segmentation, {"ball": fa.L2(1.0), "batches": 2, "confidence": None}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_to_the_same_result(case: str, tmp_path: Path) -> None:
    search, more = CASES[case]
    net = smooth_net() if search is gradient else scene_net()
    whole = search(net, 10**9, 6, **more)
    file, stopped = tmp_path / "state", 0
    for at in (3, 6, 10, 10**9):
        try:
            got = search(net, at, 6, state=file, **more)
        except KeyboardInterrupt:
            stopped += 1
    assert stopped >= 2
    assert torch.equal(got.delta, whole.delta)
    assert bool(whole.delta.any())
    done = search(net, 1, 6, state=file, **more)  # without a forward
    assert torch.equal(done.delta, whole.delta)
    longer = search(net, 10**9, 8, state=file, **more)
    assert torch.equal(longer.delta, search(net, 10**9, 8, **more).delta)
    assert not torch.equal(longer.delta, whole.delta)
    assert os.listdir(tmp_path) == ["state"]


@pytest.mark.parametrize(
    ("case", "change", "words"),
    [
        ("momentum", {"rule": fa.Momentum(0.03)}, "its attack was Attack"),
        ("momentum", {"loss_cap": 2.0}, "its loss_cap was None, now it is 2.0"),
        ("momentum", {"mask": torch.eye(8) > 0}, r"its mask was None, now it is bool \(8, 8\)"),
        ("static", {"target": SCENE.flip(0)}, r"its target was int64 \(6, 8\)"),
        ("static", {"target": None}, "now it is None"),
        ("static", {"init": fa.Perturbation(torch.zeros(3, H, W), fa.Linf(0.1))}, "its init was"),
        ("tiles", {"tile": (2, 4)}, r"its tile was \(3, 4\), now it is \(2, 4\)"),
        ("tiles", {"target": fa.universal.Remove(2)}, r"its target was Remove\(label=1"),
    ],
)
def test_another_run_is_refused(
    case: str, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    search, more = CASES[case]
    net = smooth_net() if search is gradient else scene_net()
    file = tmp_path / "state"
    search(net, 10**9, 1, state=file, **more)
    with pytest.raises(ValueError, match=f"`state` must be of this run: {words}|{words}"):
        search(net, 10**9, 1, state=file, **(more | change))


@pytest.mark.parametrize("search", [fa.universal.fast_feature_fool, fa.universal.gd_uap])
def test_without_data_too(search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle, between two halvings, and after the last."""
    monkeypatch.setattr(sys.modules["fastadv.universal.data_free"], "_PERIOD", 50)
    net, steps = scene_net(), 260
    whole = data_free(search, net, 10**9, steps)
    file, stopped = tmp_path / "state", 0
    for at in (90, 140, 110, 10**9):
        try:
            got = data_free(search, net, at, steps, state=file)
        except KeyboardInterrupt:
            stopped += 1
    assert stopped == 3
    assert torch.equal(got.delta, whole.delta)
    assert torch.equal(data_free(search, net, 1, steps, state=file).delta, whole.delta)
    with pytest.raises(ValueError, match="its steps was 260, now it is 300"):
        data_free(search, net, 10**9, 300, state=file)


@pytest.mark.parametrize("inner", [None, fa.pgd(fa.L2(0.5), steps=4)])
@pytest.mark.parametrize("search", [fa.universal.moosavi, fa.universal.averaged])
def test_passes_that_were_killed_go_on_to_the_same_result(
    search: object, inner: fa.Attack | None, tmp_path: Path
) -> None:
    x, y = torch.rand(50, 6, generator=seeded(8)).double(), torch.arange(50) % 3
    more = {"passes": 4, "fooling_rate": 1.0, "inner": inner}

    def loader() -> DataLoader:
        return shuffled(x, y, 16)

    whole = search(fa.Linf(0.15), smooth_net(), loader(), generator=seeded(1), **more)
    file, again = tmp_path / "state", 0
    for at in (3, 150, 400, 900, 10**9):
        try:
            got = search(
                fa.Linf(0.15), Dies(smooth_net(), at), loader(), state=file, generator=seeded(1),
                **more,
            )  # fmt: skip
        except KeyboardInterrupt:
            again += 1
    assert again >= 1
    assert torch.equal(got.delta, whole.delta)
    assert torch.equal(search(fa.Linf(0.15), smooth_net(), loader(), state=file, **more).delta,
                       whole.delta)  # fmt: skip
    longer = search(fa.Linf(0.15), smooth_net(), loader(), state=file, **(more | {"passes": 5}))
    five = search(fa.Linf(0.15), smooth_net(), loader(), generator=seeded(1),
                  **(more | {"passes": 5}))  # fmt: skip
    assert torch.equal(longer.delta, five.delta)
    with pytest.raises(ValueError, match=r"`state` must be of this run: its ball was .*0.15"):
        search(fa.Linf(0.2), smooth_net(), loader(), state=file, **more)
    with pytest.raises(ValueError, match=r"`state\[best\]` must be|`state\[delta\]` must be"):
        search(fa.Linf(0.15), lambda v: v, [(x[:, :3], y)], state=file, **(more | {"passes": 5}))
    (tmp_path / "other").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="`state` cannot be read"):
        search(fa.Linf(0.15), smooth_net(), loader(), state=tmp_path / "other", **more)
    assert {p.name for p in tmp_path.iterdir()} == {"state", "other"}


def test_what_is_no_state(tmp_path: Path) -> None:
    uap = fa.Perturbation(torch.zeros(3, H, W), fa.Linf(0.1))
    uap.save(tmp_path / "uap")
    (tmp_path / "text").write_text("nothing of the kind")
    for search, net in ((gradient, smooth_net()), (segmentation, scene_net())):
        with pytest.raises(ValueError, match="`state` must be what such a run saved"):
            search(net, 10**9, 1, state=tmp_path / "uap")
        with pytest.raises(ValueError, match="`state` cannot be read"):
            search(net, 10**9, 1, state=tmp_path / "text")
    longer = tmp_path / "longer"
    gradient(smooth_net(), 10**9, 3, state=longer)
    with pytest.raises(ValueError, match=r"`state` must be of at most 2 epochs, .* got 3"):
        gradient(smooth_net(), 10**9, 2, state=longer)
    ball, x, passes = fa.Linf(0.01), torch.rand(4, 6, generator=seeded(1)).double(), tmp_path / "v"
    fa.universal.moosavi(ball, smooth_net(), [x], passes=3, fooling_rate=1.0, state=passes)
    with pytest.raises(ValueError, match=r"`state` must be of at most 2 passes, .* got 3"):
        fa.universal.moosavi(ball, smooth_net(), [x], passes=2, fooling_rate=1.0, state=passes)
    file = tmp_path / "state"
    segmentation(scene_net(), 10**9, 3, state=file)
    with pytest.raises(ValueError, match=r"`state` must be of at most 2 steps, .* got 3"):
        segmentation(scene_net(), 10**9, 2, state=file)
    with pytest.raises(TypeError, match=r"`state\[delta\]` must be float32"):
        fa.universal.segmentation(
            fa.Linf(0.1), scene_net().float(), [torch.rand(2, 3, H, W)], steps=4, state=file
        )
    with pytest.raises(ValueError, match=r"`state\[delta\]` must be \(3, 4, 4\)"):
        fa.universal.segmentation(
            fa.Linf(0.1), scene_net(), [torch.rand(2, 3, 4, 4).double()], steps=4, state=file
        )


def test_a_file_that_could_not_be_written_is_refused_before_the_first_forward(
    tmp_path: Path,
) -> None:
    for search, net in ((gradient, smooth_net()), (segmentation, scene_net())):
        with pytest.raises(FileNotFoundError, match="`state` must be in a folder that exists, got"):
            search(net, 1, 1, state=tmp_path / "none" / "state")
        with pytest.raises(FileNotFoundError, match="`state` must be a file's, got"):
            search(net, 1, 1, state=tmp_path)


class Own:
    """An objective of one's own, as a process that goes on makes it anew."""

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, y, reduction="none")


def test_an_objective_of_ones_own_is_the_same_in_another_process(tmp_path: Path) -> None:
    """Its address is not."""
    x, y = torch.rand(4, 6, generator=seeded(1)).double(), torch.arange(4) % 3
    ball, net, two = fa.Linf(0.1), smooth_net(), (Own(), Own())
    for own in two:
        attack = fa.bim(ball, objective=own)
        fa.universal.gradient(attack, net, [(x, y)], state=tmp_path / "gradient")
        fa.universal.moosavi(ball, net, [x], passes=1, inner=attack, state=tmp_path / "moosavi")


def test_layers_of_one_kind_are_told_apart(tmp_path: Path) -> None:
    conv = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(2)]
    net, x = nn.Sequential(*conv, nn.Flatten()), torch.rand(2, 3, H, W, generator=seeded(1))
    attack, ball = fa.pgd(fa.Linf(0.1)), fa.Linf(0.1)
    calls = {
        "gradient": lambda k, **more: fa.universal.gradient(attack, net, [x], layers=[k], **more),
        "gd_uap": lambda k, **more: fa.universal.gd_uap(
            ball, net, (3, H, W), layers=[k], steps=2, **more
        ),
    }
    for name, call in calls.items():
        call(conv[0], state=tmp_path / name)
        call("0", state=tmp_path / name)
        with pytest.raises(ValueError, match=r"its layers was \['0'\], now it is \['1'\]"):
            call(conv[1], state=tmp_path / name)
