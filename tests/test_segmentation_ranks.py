"""segmentation, its rates and `state=` on two processes: what one finds on the same batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import seeded, smooth_net
from torch import Tensor, nn

import fastadv as fa

Batches = list[tuple[Tensor, Tensor]]
H, W = 6, 8
BALL = fa.Linf(0.1)
SCENE = (torch.arange(H)[:, None] + torch.arange(W)) % 3
KINDS: dict[str, dict[str, Any]] = {
    "static": {"target": SCENE},
    "l2": {"target": SCENE, "ball": fa.L2(1.0), "confidence": None},
    "tiles": {"target": fa.universal.Remove(1), "tile": (4, 3)},
    "labels": {},
}


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 3, 1)]
        return nn.Sequential(*layers).to(dtype).eval()


def batches(dtype: torch.dtype = torch.float64) -> Batches:
    """Of 7, 4 and 1."""
    x = torch.rand(12, 3, H, W, generator=seeded(1), dtype=torch.float64).to(dtype)
    y = torch.randint(0, 3, (12, H, W), generator=seeded(2))
    y[:, 0] = 255
    return list(zip(x.split([7, 4, 1]), y.split([7, 4, 1]), strict=True))


def shards(whole: Batches, rank: int) -> Batches:
    """Uneven: 3 + 2 samples for rank 0, in two batches; 4 + 2 + 1 for rank 1, in three."""
    cut = [(x[:k], y[:k]) if rank == 0 else (x[k:], y[k:])
           for (x, y), k in zip(whole, (3, 2, 0), strict=True)]  # fmt: skip
    return cut[: 2 + rank]


def found(rank: int | None) -> dict[str, Any]:
    """Each kind's v and its rates; None: of one process."""
    result: dict[str, Any] = {}
    for dtype in (torch.float64, torch.bfloat16):
        whole = batches(dtype)
        loader = whole if rank is None else shards(whole, rank)
        for name, more in KINDS.items():
            how = dict(more)
            ball = how.pop("ball", BALL)
            model = net(dtype)
            uap = fa.universal.segmentation(ball, model, loader, steps=6, **how)
            target = how.get("target")
            rates = fa.universal.measure_pixels(uap, model, loader, target=target)
            result[f"{name} {str(dtype)[6:]}"] = (uap.delta, rates)
    # A batch of each rank's to a step: the first ranks' two in turn, the second's three.
    own = batches() if rank is None else shards(batches(), rank)
    if rank is not None:
        some = fa.universal.segmentation(BALL, net(), own, steps=7, batches=1, target=SCENE)
    else:
        mine, other = (shards(batches(), r) for r in range(2))
        pairs = [b for k in range(7) for b in (mine[k % 2], other[k % 3])]
        some = fa.universal.segmentation(BALL, net(), pairs, steps=7, batches=2, target=SCENE)
    result["some"] = (some.delta, None)
    return result


def resumed(rank: int, folder: str) -> list[Tensor]:
    """Two runs that were cut in halves: their v is to be the whole runs'."""
    loader, flat = shards(batches(), rank), shards_of_rows(rank)
    attack = fa.Attack(fa.L2(0.5), fa.Momentum(0.02))
    calls = [
        lambda n, **m: fa.universal.segmentation(BALL, net(), loader, steps=n, target=SCENE, **m),
        lambda n, **m: fa.universal.gradient(
            attack, smooth_net(), flat, n, generator=seeded(4), **m
        ),
    ]
    pairs = []
    for k, call in enumerate(calls):
        file = f"{folder}/state{k}"
        call(2, state=file)
        pairs += [call(5, state=file).delta, call(5).delta]
    return pairs


def shards_of_rows(rank: int) -> list[Tensor]:
    x = torch.rand(20, 6, generator=seeded(5)).double()
    return [x[:6], x[6:9]] if rank == 0 else [x[9:]]


def said(rank: int, folder: str) -> dict[str, str]:
    """What is refused, on both ranks."""
    loader = shards(batches(), rank)
    once = iter(loader) if rank else loader
    square = [(x[..., :H], y[..., :H]) for x, y in loader]
    segment, measure = fa.universal.segmentation, fa.universal.measure_pixels
    uap = fa.Perturbation(torch.zeros(3, H, W).double(), BALL)
    calls = {
        "empty": lambda: segment(BALL, net(), loader if rank else [], steps=2),
        "used up": lambda: segment(BALL, net(), once, steps=2),
        "shape": lambda: segment(BALL, net(), square if rank else loader, steps=2),
        "state": lambda: segment(fa.Linf(0.2), net(), loader, state=f"{folder}/state0"),
        "rates": lambda: measure(uap, net(), []),
    }
    result = {"part": str(measure(uap, net(), batches() if rank else []))}
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            result[name] = str(error)
    return result


def reductions(rank: int) -> list[int]:
    """The sizes of what three steps send."""
    sizes, send = [], dist.all_reduce

    def counted(t: Tensor, **more: object) -> None:
        sizes.append(t.numel())
        send(t, **more)

    dist.all_reduce = counted
    try:
        fa.universal.segmentation(BALL, net(), shards(batches(), rank), steps=3, tile=(4, 3))
    finally:
        dist.all_reduce = send
    return sizes


def seen_by(rank: int, folder: str) -> dict[str, Any]:
    kinds = {"found": found(rank), "resumed": resumed(rank, folder)}
    return kinds | {"said": said(rank, folder), "sizes": reductions(rank)}


@pytest.fixture
def ranks(two_ranks: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return two_ranks["test_segmentation_ranks"]


def test_v_and_rates_are_those_of_one_process(ranks: list[dict[str, Any]]) -> None:
    """In float64 v's 6 steps of a sign are the same numbers; in l2 each is off by the roundings of
    a sum of 12 at most; in bfloat16 a gradient near 0 may have another sign."""
    for name, (delta, rates) in found(None).items():
        got = [rank["found"][name] for rank in ranks]
        assert torch.equal(got[0][0], got[1][0]), name
        assert bool(delta.any()), name
        if "bfloat16" in name:
            likeness = torch.cosine_similarity(
                got[0][0].double().flatten(), delta.double().flatten(), 0
            )
            assert likeness > 0.95, name
            continue
        torch.testing.assert_close(got[0][0], delta, atol=1e-12, rtol=0, msg=name)
        assert got[0][1] == got[1][1] == rates, name
        assert rates is None or (rates.samples, rates.miou is not None) == (12, True)


def test_a_state_is_every_ranks(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        halves, whole = rank["resumed"][::2], rank["resumed"][1::2]
        for one, other, here in zip(halves, whole, ranks[0]["resumed"][::2], strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, here)


def test_one_reduction_a_step(ranks: list[dict[str, Any]]) -> None:
    """A tile's 3 x 4 x 3, and three counts."""
    assert ranks[0]["sizes"] == ranks[1]["sizes"] == [39, 39, 39]


def test_what_is_refused_is_refused_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    uap = fa.Perturbation(torch.zeros(3, H, W).double(), BALL)
    for rank in ranks:
        words = rank["said"]
        assert words["empty"] == "`loader` must give every rank a batch, got none on ranks [0]"
        assert "an iterator that the first epoch used up?" in words["used up"]
        assert "the first batch must be alike on every rank, got [(3, 6, 8" in words["shape"]
        assert "`state` must be of this run: its ball was Linf(radius=0.1" in words["state"]
        assert "`loader` must give batches in every epoch, got none" in words["rates"]
        assert words["part"] == str(fa.universal.measure_pixels(uap, net(), batches()))
