"""Linear layers inside other models, on weights packed once."""

from __future__ import annotations

import pytest
import torch
from conftest import threads
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine import calls
from fastadv.engine.dense_plan import multiplies_bfloat16

PRECISIONS = ["float32", "bfloat16"] if multiplies_bfloat16() else ["float32"]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(1, 17), (3, 300), (2, 5, 64), (0, 20)])
def test_a_layer_and_its_gradient_are_float64s(shape: tuple[int, ...], precision: str) -> None:
    half, x = precision == "bfloat16", torch.randn(shape)
    layer = nn.Linear(shape[-1], 33)
    w, b = layer.weight.detach(), layer.bias.detach()
    y = calls.linear(x, calls.linear_weights(w, False, half), b, 33)
    grad = torch.randn(*shape[:-1], 33)
    back = calls.linear(grad, calls.linear_weights(w, True, half), None, shape[-1])
    exact, exact_back = layer.double()(x.double()), grad.double() @ w.double()
    tolerance = 3e-2 if half else 1e-5
    torch.testing.assert_close(y.double(), exact, rtol=0, atol=tolerance)
    torch.testing.assert_close(back.double(), exact_back, rtol=0, atol=tolerance)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("rows", "outputs"), [(1, 700), (9, 200), (64, 512), (250, 130)])
def test_few_rows_are_cut_by_outputs(rows: int, outputs: int, precision: str) -> None:
    x, w, bias = torch.randn(rows, 300), torch.randn(outputs, 300), torch.randn(outputs)
    packed, found = calls.linear_weights(w, False, precision == "bfloat16"), []
    for count in (1, 2, 3, 5):
        with threads(count):
            found.append(calls.linear(x, packed, bias, outputs))
    exact = x.double() @ w.double().t() + bias
    tolerance = 2e-2 if precision == "bfloat16" else 1e-6
    assert float((found[0] - exact).norm()) <= tolerance * float(exact.norm())
    assert all(torch.equal(y, found[0]) for y in found[1:])


class Tokens(nn.Module):
    """Patches, a layer on transposed tokens, as attention has it, and one whose weights another
    layer computes."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.mix = nn.Linear(32, 48)
        self.tied = nn.Linear(48, 32, bias=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        mixed = torch.tanh(self.mix(tokens.transpose(0, 1))).transpose(0, 1)
        folded = nn.functional.linear(mixed, self.tied.weight * 2)
        return self.head((self.tied(mixed) + folded + tokens).mean(1))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_model_of_tokens(precision: str) -> None:
    torch.manual_seed(0)
    model, x = Tokens().eval(), torch.rand(5, 3, 16, 16).requires_grad_()
    fast = fa.compile(model, precision=precision)
    (found,) = torch.autograd.grad(fast(x).square().sum(), x)
    (exact,) = torch.autograd.grad(model(x).square().sum(), x)
    bound = 3e-2 if precision == "bfloat16" else 1e-5
    assert float((found - exact).norm()) <= bound * float(exact.norm())
    with torch.no_grad():
        model.mix.weight.mul_(1.5)
    (found,) = torch.autograd.grad(fast(x).square().sum(), x)
    (exact,) = torch.autograd.grad(model(x).square().sum(), x)
    assert float((found - exact).norm()) <= bound * float(exact.norm())
    if fa.backend().is_native:
        rows = str(fast.report()).splitlines()
        served = [row for row in rows if " direct" in row and ("mix" in row or "tied" in row)]
        assert len(served) == 4  # forward and gradient of each


@pytest.mark.skipif(not multiplies_bfloat16(), reason="no products of bfloat16 here")
def test_a_model_without_convolutions_in_bfloat16() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(160, 10)).eval()
    x = torch.rand(4, 5, 32).requires_grad_()
    fast = fa.compile(model, precision="bfloat16")
    (found,) = torch.autograd.grad(fast(x).square().sum(), x)
    (exact,) = torch.autograd.grad(model(x).square().sum(), x)
    assert 0 < float((found - exact).norm()) <= 5e-2 * float(exact.norm())


def test_a_relu_between_layers_keeps_what_is_no_number() -> None:
    x = torch.tensor([[torch.nan, 0.0, -0.0, 1.0, -2.0, torch.inf, -torch.inf] * 3])
    grad = torch.randn(1, 21)
    y, signs = calls.activate(x)
    leaf = x.clone().requires_grad_()
    exact = torch.relu(leaf)
    torch.testing.assert_close(y, exact.detach(), rtol=0, atol=0, equal_nan=True)
    (back,) = torch.autograd.grad(exact, leaf, grad)
    assert torch.equal(calls.times_slopes(grad, None, signs), back)
