"""fa.compile: logits and gradients against float64, and what it says about itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache

import nets
import pytest
import tables
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import Compiled, speeds, worth

least_batch = worth.least_batch  # which conftest.py replaces
native = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")

NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: nets.norm_statistics(nets.ResNet18(), 3, 32, 32),
    "mnist": lambda: nets.MnistNet().eval(),
}


@cache
def compiled(name: str) -> Compiled:
    torch.manual_seed(0)
    return fa.compile(NETS[name]())


def inputs(name: str, batch: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(batch)
    shape = (1, 28, 28) if name == "mnist" else (3, 32, 32)
    return torch.rand(batch, *shape), torch.arange(batch) % 10


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), leaf)
    return logits.detach(), grad


def per_sample_error(found: Tensor, exact: Tensor) -> Tensor:
    difference = (found - exact).flatten(1).norm(dim=1)
    return difference / exact.flatten(1).norm(dim=1)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # Dynamo's, of an autograd op
@pytest.mark.parametrize("name", NETS)
def test_gradients_are_float64s(name: str) -> None:
    fast = compiled(name)
    model, exact = fast.module, copy.deepcopy(fast.module).double()
    for batch in (8, 1, 17) if name == "mnist" else (7,):
        x, y = inputs(name, batch)
        logits, grad = gradient(fast, x, y)
        exact_logits, exact_grad = gradient(exact, x.double(), y)
        assert grad.stride() == x.stride()
        assert float(per_sample_error(logits, exact_logits).median()) <= 1e-5
        assert float(per_sample_error(grad, exact_grad).median()) <= 1e-5
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert str(fast.report())


@native
def test_the_report_names_what_serves_each_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    ranked = tables.Ranked("winograd", "direct", "fold")
    monkeypatch.setattr(speeds, "current", lambda: ranked)
    fast = fa.compile(NETS["resnet18"]())
    gradient(fast, *inputs("resnet18", 7))
    (rows,) = fast.report().graphs.values()
    served = {(r.layer, r.op.split()[0]): r for r in rows}
    plain = served["blocks.0.conv2", "conv"]
    assert plain.served_by.startswith("winograd")
    assert plain.op.endswith("norm folded + residual + relu")
    assert served["blocks.0.conv1", "gradient"].op.endswith("+ residual + slopes")
    assert plain.why == "4.0 times ATen's speed by the table"
    assert served["blocks.2.conv1", "conv"].served_by == "winograd"
    pointwise = served["blocks.2.shortcut.0", "gradient"]
    assert pointwise.served_by == "fold"
    assert pointwise.why == "is not 3x3, 1.3 times ATen's speed by the table"
    assert not any("batch norm" in r.op for r in rows)
    assert sum(r.served_by.startswith("winograd") for r in rows) >= 26


@native
@pytest.mark.parametrize("pixels", [16, 15])
def test_strides_of_two_by_winograd(monkeypatch: pytest.MonkeyPatch, pixels: int) -> None:
    ranked = tables.Ranked("winograd", "direct", "fold")
    monkeypatch.setattr(speeds, "current", lambda: ranked)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 48, 3, 2, 1), nn.BatchNorm2d(48), nn.ReLU(),
        nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(48, 10),
    ).eval()  # fmt: skip
    x, y = torch.rand(20, 3, pixels, pixels), torch.arange(20) % 10
    fast = fa.compile(model)
    found = gradient(fast, x, y)[1]
    exact = gradient(copy.deepcopy(model).double(), x.double(), y)[1]
    assert float(per_sample_error(found, exact).median()) <= 1e-5
    (rows,) = fast.report().graphs.values()
    served = [r.served_by for r in rows if "48x32x3x3" in r.op]
    assert served == ["winograd", "winograd"]


def test_what_is_not_compiled_says_so() -> None:
    assert "nothing is compiled" in str(fa.compile(nets.MnistNet()).report())
    assert "no 2d convolution" in str(fa.compile(nn.Conv1d(3, 4, 3)).report())
    assert "too small" in str(fa.compile(nn.Conv2d(1, 4, 3)).report())


def test_three_compiles_serve_all_batches() -> None:
    fast = compiled("mnist")
    for batch in (1, 2, 15, 16, 33, 5):
        x, y = inputs("mnist", batch)
        torch.testing.assert_close(
            gradient(fast, x, y)[1], gradient(fast.module, x, y)[1], rtol=1e-3, atol=1e-5
        )
    assert len(fast.report().graphs) == 3  # 1, 2 to 15, 16 and more
    assert all("1 graph(s)" in name for name in fast.report().graphs)
    assert len(fast(torch.rand(0, 1, 28, 28))) == 0
    with torch.no_grad():
        torch.testing.assert_close(fast(x), fast.module(x), rtol=1e-4, atol=1e-5)
    assert "without gradient" in list(fast.report().graphs)[-1]


@native
@pytest.mark.parametrize("batch", [1, 64])
def test_what_saves_less_than_a_call_costs_runs_as_plain_torch(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(worth, "least_batch", least_batch)
    monkeypatch.setattr(worth, "cost", lambda graphs, layers: 0.5e-3)
    convs: list[nn.Module] = [nn.Conv2d(32, 32, 3, padding=1) for _ in range(2)]
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), *convs, nn.Flatten())
    fast = fa.compile(model)
    x, y = torch.rand(batch, 3, 10, 10), torch.zeros(batch, dtype=torch.long)
    first, later, exact = (gradient(m, x, y)[1] for m in (fast, fast, model))
    torch.testing.assert_close(first, exact, rtol=1e-3, atol=1e-4)
    assert torch.equal(later, exact) == ("runs as plain torch" in str(fast.report()))
    assert torch.equal(later, exact) == (batch == 1)
    assert all(p.grad is None for p in model.parameters())


class Views(nn.Module):
    """Its views hold for contiguous images alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 32, 3, padding=1), nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.nn.functional.max_pool2d(self.conv(x).relu(), 2)
        assert y.view(torch.int32).dtype == torch.int32
        return self.fc(y.view(len(x), -1))


def test_views_of_a_models_own_images_hold() -> None:
    torch.manual_seed(0)
    model, x = Views().eval(), torch.rand(5, 3, 8, 8)
    _, exact = gradient(model, x, torch.arange(5))
    _, found = gradient(fa.compile(model), x, torch.arange(5))
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_run_as_aten_runs_them(dtype: torch.dtype) -> None:
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()]
    more = [nn.Conv2d(16, 8, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 196, 10)]
    model = nets.norm_statistics(nn.Sequential(*layers, *more), 3, 32, 32).to(dtype)
    x, y = inputs("resnet18", 4)
    logits, grad = gradient(fa.compile(model), x.to(dtype), y)
    exact_logits, exact = gradient(model, x.to(dtype), y)
    assert grad.dtype == dtype
    torch.testing.assert_close(logits, exact_logits)
    torch.testing.assert_close(grad, exact)


def test_layouts_and_views_of_the_input() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten())
    fast = fa.compile(model)
    x, y = inputs("resnet18", 6)
    _, exact = gradient(model, x, y)
    for given in (
        x.contiguous(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([x, x], 1)[:, 0],
    ):
        torch.testing.assert_close(gradient(fast, given, y)[1], exact, rtol=1e-3, atol=1e-5)


def test_train_mode_norms_are_right_and_their_statistics_untouched() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Softplus()]
    more = [nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8), nn.Tanh(), nn.Flatten(), nn.Linear(7200, 10)]
    model = nets.norm_statistics(nn.Sequential(*layers, *more), 3, 32, 32).train()
    fast = fa.compile(model)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    x, y = inputs("resnet18", 8)
    _, grad = gradient(fast, x, y)
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name]), name
    exact = copy.deepcopy(model).double()
    _, exact_grad = gradient(exact, x.double(), y)
    assert float(per_sample_error(grad, exact_grad).max()) <= 1e-5
    assert fast.training
    fast.eval()
    assert not model.training
    exact = copy.deepcopy(model).double()
    _, grad = gradient(fast, x, y)
    assert float(per_sample_error(grad, gradient(exact, x.double(), y)[1]).max()) <= 1e-5


def test_a_wrong_shape_is_the_models_own_error() -> None:
    fast = fa.compile(nn.Sequential(nn.Conv2d(3, 32, 3), nn.Flatten()))
    with pytest.raises(RuntimeError, match=r"^Given groups=1, weight of size"):
        fast(torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("bad", ["model", "precision", "x"])
def test_errors(bad: str) -> None:
    if bad == "model":
        with pytest.raises(TypeError, match=r"`model` must be a torch\.nn\.Module"):
            fa.compile(lambda x: x)  # type: ignore[arg-type]
    elif bad == "precision":
        with pytest.raises(ValueError, match="`precision` must be"):
            fa.compile(nn.Identity(), precision="float16")
    else:
        with pytest.raises(TypeError, match=r"`x` must be a torch\.Tensor"):
            fa.compile(nn.Identity())([1.0])


def test_a_graph_that_is_asked_for_on_the_cpu_is_an_error() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 5)
    ).eval()
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    attack = fa.bim(fa.Linf(0.1), steps=2)
    with pytest.raises(RuntimeError, match=r"graph=True, but .* `x` is on cpu, not on CUDA"):
        attack(fa.compile(model, graph=True), x, y)
    assert torch.equal(
        attack(fa.compile(model, graph=False), x, y), attack(fa.compile(model), x, y)
    )
