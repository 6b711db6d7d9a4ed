"""Under torch.distributed: two processes on shards of the batches find what one finds on them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from conftest import LinearPair, seeded, smooth_net
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import fastadv as fa

Batches = list[tuple[Tensor, Tensor]]
W = torch.tensor([4.0, -2.0, 0.0, 1.0, -8.0, 0.5], dtype=torch.float64)  # exact in any sum
RULES = {
    "steepest": fa.Steepest(0.02), "momentum": fa.Momentum(0.02, 0.5), "raw": fa.Gradient(0.3),
    "adam": fa.Adam(0.02),
}  # fmt: skip


def batches(dtype: torch.dtype = torch.float64) -> Batches:
    """Three batches, the last one uneven."""
    g = seeded(11)
    x = torch.rand(29, 6, generator=g, dtype=torch.float64).to(dtype)
    y = torch.randint(0, 3, (29,), generator=g)
    return [(x[a:b], y[a:b]) for a, b in ((0, 12), (12, 24), (24, 29))]


def shards(whole: Batches, rank: int) -> Batches:
    """Unequal ones: of 12 samples 5 and 7; the last batch goes to rank 1 alone."""
    cut = [(x[:5], y[:5]) if rank == 0 else (x[5:], y[5:]) for x, y in whole[:2]]
    return cut + (whole[2:] if rank else [])


def smooth(whole: Batches, rank: int | None, **more: object) -> dict[str, Tensor]:
    """Each rule's delta on a net without a kink, in a ball that it does not fill."""
    loader = whole if rank is None else shards(whole, rank)
    found = {}
    for name, rule in RULES.items():
        attack = fa.Attack(fa.L2(2.0), rule, start="zero")
        net = smooth_net(loader[0][0].dtype)
        uap = fa.universal.gradient(attack, net, loader, 4, loss_cap=1.3, **more)
        found[name] = uap.delta
    return found


def exact(whole: Batches, rank: int | None) -> dict[str, Tensor]:
    """Sums without a rounding, whatever their order: of dyadic numbers, and of signs (here no
    gradient is so near 0 that the batch's size decides its sign)."""
    loader = whole if rank is None else shards(whole, rank)
    linear = [(x, torch.zeros_like(y)) for x, y in loader]
    found = {}
    for name, ball in {"linf": fa.Linf(0.3), "l2": fa.L2(0.3), "l1": fa.L1(0.3)}.items():
        attack = fa.Attack(ball, fa.Steepest(0.05), objective=fa.margin, start="zero")
        found[name] = fa.universal.gradient(attack, LinearPair(W), linear, 3).delta
    voted = fa.Attack(fa.Linf(0.2), fa.Steepest(0.02), start="zero")
    found["signs"] = fa.universal.gradient(voted, smooth_net(), loader, 4, signs=True).delta
    mask = W > -5  # all but one
    found["mask"] = fa.universal.gradient(
        voted, smooth_net(), loader, 4, signs=True, mask=mask
    ).delta
    found["classes"] = fa.universal.gradient(
        voted, smooth_net(), loader, 4, signs=True, per_class=3
    ).delta
    return found


def of_every_kind(rank: int | None) -> dict[str, object]:
    whole = batches()
    loader = whole if rank is None else shards(whole, rank)
    start = fa.Attack(fa.Linf(0.2), fa.Steepest(0.0))
    uap = fa.Perturbation(3 * W.sign(), fa.Linf(3.0, None))
    return {
        "smooth": smooth(whole, rank),
        "float32": smooth(batches(torch.float32), rank),
        "bfloat16": smooth(batches(torch.bfloat16), rank),
        "exact": exact(whole, rank),
        "rates": fa.universal.measure(uap, smooth_net(), loader),
        "start": fa.universal.gradient(
            start, smooth_net(), loader, generator=seeded(1 + (rank or 0))
        ).delta,
    }


def trained(rank: int | None) -> dict[str, Tensor]:
    """Adversarial training by SGD, a DistributedDataParallel on two ranks."""
    torch.manual_seed(0)
    net: nn.Module = smooth_net()
    model = net if rank is None else nn.parallel.DistributedDataParallel(net)
    attack = fa.Attack(fa.L2(0.5), fa.Momentum(0.05), start="zero")
    loss = fa.training.Universal(attack, loss_cap=1.5)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for x, y in batches()[:2] * 3:
        half = slice(None) if rank is None else slice(6 * rank, 6 * rank + 6)
        optimizer.zero_grad()
        loss(model, x[half], y[half]).backward()
        optimizer.step()
    found = {"delta": loss.perturbation.delta, "weight": net[0].weight.detach()}
    return found | {"uneven": uneven(rank)}


def uneven(rank: int | None) -> Tensor:
    """delta alone, on shards of 5 and 7; where one rank's loss overflows, none takes the step."""
    net = smooth_net()
    loss = fa.training.Universal(fa.Attack(fa.L2(0.5), fa.Momentum(0.05), start="zero"))
    whole = batches()[:2]
    for x, y in whole if rank is None else shards(whole, rank)[:2]:
        loss(net, x, y).backward()
        before = loss.perturbation.delta
        (loss(net, x, y) * (1.0 if rank == 0 else torch.inf)).backward()
        assert torch.equal(loss.perturbation.delta, before)
    return loss.perturbation.delta


def said(rank: int) -> dict[str, str]:
    """What is refused, on both ranks."""
    found, whole = {}, batches()
    attack = fa.bim(fa.Linf(0.1), 0.05)
    other = [(whole[0][0][:, :5], whole[0][1])] if rank else whole
    calls = {
        "empty": lambda: fa.universal.gradient(attack, smooth_net(), whole if rank else []),
        "mask": lambda: fa.universal.gradient(attack, smooth_net(), whole, mask=W.gt(2 * rank)),
        "shape": lambda: fa.universal.gradient(attack, nn.Linear(6 - rank, 3).double(), other),
    }
    uap = fa.Perturbation(W, fa.Linf(9.0))
    calls["rates"] = lambda: fa.universal.measure(uap, smooth_net(), [])
    found["part"] = str(fa.universal.measure(uap, smooth_net(), whole if rank else []))
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            found[name] = str(error)
    return found


def alone(rank: int) -> list[Tensor]:
    """A group of one sends nothing; Algorithm 1 never does."""
    groups = [dist.new_group([r]) for r in range(2)]
    attack = fa.bim(fa.Linf(0.1), 0.05)
    own = fa.universal.gradient(
        attack, smooth_net(), shards(batches(), rank), group=groups[rank]
    ).delta
    return [own, fa.universal.moosavi(fa.L2(0.5), smooth_net(), batches(), passes=2).delta]


def reductions() -> list[int]:
    """The sizes of what one epoch of two batches sends."""
    sizes, send = [], dist.all_reduce

    def counted(t: Tensor, **more: object) -> None:
        sizes.append(t.numel())
        send(t, **more)

    dist.all_reduce = counted
    try:
        fa.universal.gradient(fa.bim(fa.Linf(0.1), 0.05), smooth_net(), batches()[:2])
    finally:
        dist.all_reduce = send
    return sizes


def seen_by(rank: int, folder: str) -> dict[str, object]:
    found = of_every_kind(rank)
    found |= {"trained": trained(rank), "said": said(rank), "alone": alone(rank)}
    return found | {"sizes": reductions()}


@pytest.fixture
def ranks(two_ranks: dict[str, list[dict]]) -> list[dict]:
    return two_ranks["test_universal_ranks"]


@pytest.fixture(scope="module")
def one() -> dict[str, object]:
    return of_every_kind(None)


@pytest.mark.parametrize("kind", ["smooth", "float32", "bfloat16", "exact", "trained"])
def test_every_rank_holds_the_same_bits(ranks: list[dict], kind: str) -> None:
    assert ranks[0][kind].keys() == ranks[1][kind].keys()
    for name, delta in ranks[0][kind].items():
        assert torch.equal(delta, ranks[1][kind][name]), name
        assert bool(delta.any()), name


def test_exact_sums_give_the_same_bits_as_one_process(ranks: list[dict], one: dict) -> None:
    for name, delta in one["exact"].items():
        assert torch.equal(ranks[0]["exact"][name], delta), name


def test_the_same_delta_as_one_process(ranks: list[dict], one: dict) -> None:
    """12 steps, each off by the roundings of a sum of at most 12, which the net may double: 2^12
    roundings in all. In bfloat16 delta itself is rounded, 8 bits, each step."""
    for kind, dtype in (("smooth", torch.float64), ("float32", torch.float32)):
        for name, delta in one[kind].items():
            atol = 2.0**12 * torch.finfo(dtype).eps
            torch.testing.assert_close(ranks[0][kind][name], delta, atol=atol, rtol=0, msg=name)
    for name, delta in one["bfloat16"].items():
        got = ranks[0]["bfloat16"][name]
        assert torch.cosine_similarity(got.double(), delta.double(), 0) > 0.99, name


def test_a_uniform_start_is_the_first_ranks(ranks: list[dict], one: dict) -> None:
    assert torch.equal(ranks[0]["start"], ranks[1]["start"])
    assert torch.equal(ranks[0]["start"], one["start"])


def test_rates_are_of_all_shards(ranks: list[dict], one: dict) -> None:
    assert ranks[0]["rates"] == ranks[1]["rates"] == one["rates"]
    assert one["rates"].samples == 29
    assert 0 < one["rates"].fooled < 1


def test_training_is_as_on_the_whole_batch(ranks: list[dict]) -> None:
    for name, value in trained(None).items():
        torch.testing.assert_close(ranks[0]["trained"][name], value, atol=1e-11, rtol=0)


def test_one_reduction_a_step(ranks: list[dict]) -> None:
    """delta's 6, a count of samples, 3 of the tally; and one more that ends the epoch."""
    assert ranks[0]["sizes"] == ranks[1]["sizes"] == [10, 10, 10]


def test_what_is_refused_is_refused_on_every_rank(ranks: list[dict]) -> None:
    for rank in ranks:
        assert (
            rank["said"]["empty"] == "`loader` must give every rank a batch, got none on ranks [0]"
        )
        assert "`loader` must give batches in every epoch, got none" in rank["said"]["rates"]
        uap = fa.Perturbation(W, fa.Linf(9.0))
        assert rank["said"]["part"] == str(fa.universal.measure(uap, smooth_net(), batches()))
        assert "the first batch must be alike on every rank, got [(6, " in rank["said"]["shape"]
        assert "alike on every rank, got [(6, 'torch.float64', 'mask " in rank["said"]["mask"]


def test_without_communication(ranks: list[dict]) -> None:
    """A group of one is alone, and moosavi comes out the same on every rank."""
    attack = fa.bim(fa.Linf(0.1), 0.05)
    for rank in range(2):
        own = fa.universal.gradient(attack, smooth_net(), shards(batches(), rank)).delta
        assert torch.equal(ranks[rank]["alone"][0], own)
        v = fa.universal.moosavi(fa.L2(0.5), smooth_net(), batches(), passes=2).delta
        assert torch.equal(ranks[rank]["alone"][1], v)


def test_algorithm_1_refuses_a_loader_that_shards() -> None:
    data = TensorDataset(torch.rand(8, 6).double())
    sharded = DataLoader(data, sampler=DistributedSampler(data, num_replicas=2, rank=0))
    for method in (fa.universal.moosavi, fa.universal.averaged):
        with pytest.raises(ValueError, match="`loader` must give every rank all the data"):
            method(fa.Linf(0.1), smooth_net(), sharded)
        with pytest.raises(ValueError, match="`validation` must give every rank all the data"):
            method(fa.Linf(0.1), smooth_net(), [torch.rand(4, 6).double()], validation=sharded)


def test_a_group_without_torch_distributed() -> None:
    with pytest.raises(ValueError, match="`group` must be one that this process is in, got 3"):
        fa.universal.measure(
            fa.Perturbation(W, fa.Linf(9.0)), smooth_net(), [torch.rand(2, 6).double()], group=3
        )
