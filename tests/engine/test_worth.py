"""Whether a compiled graph is worth its calls, by tables that were never measured."""

from __future__ import annotations

from collections.abc import Callable

import nets
import pytest
import tables
import torch
from tables import CASE
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import backend, speeds, variants, worth
from fastadv.engine.dense_plan import multiplies_bfloat16
from fastadv.engine.speeds import ATEN, DIRECT, OWN, Call, Case, Measured, Speeds

native = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")
least_batch = worth.least_batch  # which the other tests replace
ONE = Case("", 1, 1, 1, 1, 1, 1, 1)


def table_of(graph: float, layer: float, **seconds: float) -> Speeds:
    found = dict(tables.of("convolution", **seconds).measured)
    for op, cost in (("graph", graph), ("layer", layer)):
        found[op, "float32"] = [Measured(ONE._replace(op=op), {OWN: cost})]
    return Speeds(found)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(graph: float = 0.0, layer: float = 0.0, **seconds: float) -> None:
        made = table_of(graph, layer, **seconds)
        monkeypatch.setattr(speeds, "current", lambda: made)

    return use


def test_a_saving_is_what_plain_torch_takes_longer(table: Callable[..., None]) -> None:
    table(direct=3e-6, aten=6e-6, plain=8e-6)
    ours = Call(DIRECT, CASE, "float32")
    assert worth.saving([ours], 8) == pytest.approx(5e-6)
    assert worth.saving([ours, Call(ATEN, CASE, "float32")], 8) == pytest.approx(7e-6)
    assert worth.saving([ours._replace(precision="bfloat16")], 8) == 0  # nothing is known of it
    table(direct=9e-6, aten=6e-6, plain=8e-6)
    assert worth.saving([ours], 8) == pytest.approx(-1e-6)


def test_graphs_and_their_layers_cost(table: Callable[..., None]) -> None:
    table(graph=5e-4, layer=1e-5)
    assert worth.cost(2, 7) == pytest.approx(1e-3 + 7e-5)


def test_the_least_batch_that_pays(table: Callable[..., None]) -> None:
    table(graph=1.9e-5, layer=0.0, direct=2e-6, plain=7e-6)
    per_sample = Call(DIRECT, CASE._replace(batch=Batch()), "float32")
    for sizes, least in (((2, 4, 8), None), ((16, 32, 64), 32), ((64,), 64)):
        assert least_batch([per_sample], 1, 4, sizes) == least


class Batch:
    """A size that is the batch's, as a graph has it."""

    class node:
        class expr:
            free_symbols = frozenset(("s",))

            @staticmethod
            def subs(values: dict[str, int]) -> int:
                return values["s"]


@pytest.fixture
def calls_made(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What the compiles after this say of their calls."""
    found: list[Call] = []
    rewrite = backend.Compiler._rewrite

    def watched(self: backend.Compiler, *args: object) -> None:
        rewrite(self, *args)
        found[:] = self.calls

    monkeypatch.setattr(backend.Compiler, "_rewrite", watched)
    return found


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf).square().sum(), leaf)[0]


@native
def test_each_layer_that_the_table_knows_counts(calls_made: list[Call]) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 5, 2, 2), nn.Conv2d(24, 24, 3, groups=3), nn.Flatten(),
        nn.Linear(96, 32),
    ).eval()  # fmt: skip
    gradient(fa.compile(model), torch.rand(5, 3, 16, 16))
    kinds = {(c.case.op, *c.case[1:7], worth.size_at(c.case.batch, 8)) for c in calls_made}
    assert kinds == {
        ("convolution", 3, 1, 3, 16, 16, 16, 8), ("gradient", 3, 1, 3, 16, 16, 16, 8),
        ("norm", 1, 1, 16, 16, 16, 16, 8), ("norm gradient", 1, 1, 16, 16, 16, 16, 8),
        ("pool", 2, 2, 16, 16, 8, 8, 8), ("pool gradient", 2, 2, 16, 16, 8, 8, 8),
        ("convolution", 5, 2, 16, 24, 4, 4, 8), ("gradient", 5, 2, 16, 24, 4, 4, 8),
        ("linear", 1, 1, 96, 32, 1, 1, 8), ("linear", 1, 1, 32, 96, 1, 1, 8),
    }  # fmt: skip


@native
@pytest.mark.parametrize("precision", ["float32", *(["bfloat16"] if multiplies_bfloat16() else [])])
def test_a_transformers_layers_count(calls_made: list[Call], precision: str) -> None:
    gradient(fa.compile(nets.ViT().eval(), precision=precision), torch.rand(5, 3, 32, 32))
    found = {(c.case.op, c.precision): worth.size_at(c.case.batch, 8) for c in calls_made}
    for op in ("linear", "linear gelu", "linear times"):
        assert found[op, precision] == 8 * 64
    for op in ("attention", "attention gradient"):
        assert found[op, precision] == 8
    for op in ("layer norm", "layer norm gradient"):
        assert found[op, "float32"] == 8 * 64
    attention = next(c.case for c in calls_made if c.case.op == "attention")
    assert attention[3:7] == (12, 4, 64, 64)


@native
def test_without_a_gradient_only_forwards_count(calls_made: list[Call]) -> None:
    model = nn.Sequential(nn.Conv2d(16, 40, 3), nn.BatchNorm2d(40)).eval()
    with torch.no_grad():
        fa.compile(model)(torch.rand(5, 16, 8, 8))
    assert {c.case.op for c in calls_made} == {"convolution", "norm"}


@native
def test_kernels_do_not_depend_on_the_batch_that_came_first(
    monkeypatch: pytest.MonkeyPatch, calls_made: list[Call]
) -> None:
    asked: list[float] = []
    seconds = Speeds.seconds

    def watched(self: Speeds, kernel: str, case: Case, precision: str) -> float | None:
        asked.append(case.batch)
        return seconds(self, kernel, case, precision)

    monkeypatch.setattr(Speeds, "seconds", watched)
    model = nn.Sequential(nn.Conv2d(16, 40, 3, padding=1), nn.Flatten()).eval()
    for batches, usual in (((2, 15), 8), ((16, 50), 32), ((1,), 1)):
        for batch in batches:
            asked.clear()
            gradient(fa.compile(model), torch.rand(batch, 16, 6, 6))
            assert set(asked) == {usual}


@native
def test_a_compile_runs_as_plain_torch_below_the_batch_from_which_it_pays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worth, "least_batch", lambda *given: 4)
    model = nn.Sequential(nn.Conv2d(16, 40, 3, padding=1), nn.ReLU(), nn.Flatten()).eval()
    fast = fa.compile(model)
    gradient(fast, torch.rand(7, 16, 6, 6))
    assert "runs as plain torch below a batch of 4" in str(fast.report())
    for batch in (2, 3, 4, 15):
        x = torch.rand(batch, 16, 6, 6)
        assert torch.equal(gradient(fast, x), gradient(model, x)) == (batch < 4)
    monkeypatch.setattr(worth, "least_batch", lambda *given: None)
    x = torch.rand(20, 16, 6, 6)
    first, later = gradient(fast, x), gradient(fast, x)
    assert not torch.equal(first, later)
    assert torch.equal(later, gradient(model, x))


def test_a_count_of_threads_that_chooses_other_kernels_is_another_compile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, keys = torch.rand(3, 1, 4, 4), []
    for count in (1, 2, 1):
        monkeypatch.setattr(speeds, "threads", lambda count=count: count)
        keys.append(variants.key_of(nn.Identity(), x, False))
    assert keys[0] == keys[2] != keys[1]
