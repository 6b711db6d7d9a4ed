"""Linear layers with what follows them, attention and layer norms: their ops."""

from __future__ import annotations

from itertools import product

import isas
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastadv as fa
from fastadv.engine import calls, reference_tokens, tokens
from fastadv.engine.dense_plan import multiplies_bfloat16
from fastadv.engine.reference_tokens import GELU, GELU_BY_TANH, PLAIN, TIMES, room

ops = torch.ops.fastadv
native = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")
DTYPES = [torch.float32, torch.bfloat16] if multiplies_bfloat16() else [torch.float32]
FORMS = {GELU: "none", GELU_BY_TANH: "tanh"}


def close(found: Tensor, exact: Tensor, narrow: bool = False) -> None:
    """Relative, of the whole: roundings of float32, or of bfloat16."""
    assert found.shape == exact.shape
    error = (found.double() - exact.double()).norm()
    assert error <= (1e-2 if narrow else 1e-6) * exact.double().norm() + 1e-30


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("finish", [PLAIN, GELU, GELU_BY_TANH, TIMES])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(3, 5, 17), (130, 300, 33), (9, 64, 100)])
def test_a_linear_layer_and_what_follows_it(
    rows: int, inputs: int, outputs: int, finish: int, dtype: torch.dtype
) -> None:
    w, bias = torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs)
    x, residual = torch.randn(rows, inputs), torch.randn(rows, outputs)
    given = torch.randn(rows, outputs).to(dtype)
    exact = F.linear(x.double(), w.double(), bias.double())
    if finish in FORMS:
        exact.requires_grad_()
        y = F.gelu(exact, approximate=FORMS[finish])
        (slope,) = torch.autograd.grad(y.sum(), exact)
        exact = y.detach()
    elif finish == TIMES:
        exact, slope = exact * given.double(), given.double()
    packed, half = calls.linear_weights(w, False, dtype == torch.bfloat16), dtype != torch.float32
    for narrow_x, narrow_y in product([False, True] if half else [False], repeat=2):
        y = torch.empty(rows, outputs, dtype=dtype if narrow_y else torch.float32)
        slopes = None if finish == PLAIN else given.clone()
        ops.linear_(y, slopes, x.to(dtype) if narrow_x else x, packed, bias, residual, finish)
        close(y, exact + residual, half)
        if slopes is not None:
            close(slopes, slope, half)


def heads_of(
    n: int, heads: int, length: int, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v in one tensor, as a layer of torch has them."""
    packed = torch.randn(n, length, 3, heads, width).to(dtype)
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    return q, k, v


def attended(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, scale: float) -> list[Tensor]:
    """o, and the gradients by q, k and v, from the ops."""
    n, heads, length, width = q.shape
    o = torch.empty(n, length, heads, width, dtype=q.dtype).transpose(1, 2)
    p = torch.empty(n, heads, length, room(length, q.dtype == torch.bfloat16), dtype=q.dtype)
    ops.attention_(o, p, q, k, v, scale)
    grads = heads_of(n, heads, length, width, q.dtype)
    ops.attention_gradient_(*grads, grad, p, q, k, v, scale)
    return [o, *grads]


SIZES = [(2, 3, 64, 64), (1, 2, 65, 20), (3, 1, 17, 5), (1, 1, 1, 1), (1, 2, 197, 33)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_attention_and_its_gradient_are_float64s(
    size: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    q, k, v = heads_of(*size, dtype)
    grad = torch.randn(size).to(dtype)
    exact = [t.double().requires_grad_() for t in (q, k, v)]
    y = torch.softmax(0.3 * exact[0] @ exact[1].transpose(2, 3), -1) @ exact[2]
    grads = torch.autograd.grad(y, exact, grad.double())
    for found, e in zip(attended(q, k, v, grad, 0.3), [y, *grads], strict=True):
        close(found, e, dtype == torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(3, 1), (5, 16), (70, 37), (4, 300)])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_layer_norm_and_its_gradient_are_float64s(
    rows: int, width: int, weighted: bool, dtype: torch.dtype
) -> None:
    x, grad, residual = torch.randn(3, rows, width)
    gamma, beta = torch.randn(2, width) if weighted else (None, None)
    exact = (3 * x + 2).double().requires_grad_()
    weights = [None if w is None else w.double() for w in (gamma, beta)]
    y = F.layer_norm(exact, (width,), *weights, 1e-3)
    (by_x,) = torch.autograd.grad(y, exact, grad.double())
    found, kept = torch.empty(rows, width, dtype=dtype), torch.empty(rows, 2)
    ops.norm_(found, kept, 3 * x + 2, gamma, beta, 1e-3)
    assert (found.double() - y).abs().max() <= (3e-2 if dtype == torch.bfloat16 else 5e-6)
    back = torch.empty(rows, width)
    ops.norm_gradient_(back, grad, kept, 3 * x + 2, gamma, residual)
    assert (back.double() - by_x - residual).abs().max() <= 1e-5
    alone, own = torch.empty(1, width, dtype=dtype), torch.empty(1, 2)
    ops.norm_(alone, own, 3 * x[1:2] + 2, gamma, beta, 1e-3)
    assert torch.equal(alone[0], found[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_in_its_head(dtype: torch.dtype) -> None:
    q, k, v = heads_of(2, 2, 19, 8, dtype)
    grad = torch.randn(2, 2, 19, 8).to(dtype)
    before = attended(q, k, v, grad, 1.0)
    q[1, 0, 3, 2] = torch.nan
    after = attended(q, k, v, grad, 1.0)
    assert after[0][1, 0, 3].isnan().all()
    assert not after[0][1, 0, :3].isnan().any()
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1, 1], b[1, 1])
    x = torch.randn(5, 8)
    x[2, 1] = torch.nan
    packed, y, slopes = (
        calls.linear_weights(torch.randn(20, 8), False, False),
        *torch.ones(2, 5, 20),
    )
    ops.linear_(y, slopes, x, packed, None, None, GELU)
    assert y.isnan().any(1).tolist() == [False, False, True, False, False]
    assert y[2].isnan().all()
    assert slopes[2].isnan().all()


@native
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_samples_bits_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    q, k, v = heads_of(7, 2, 21, 12, dtype)
    grad = torch.randn(7, 2, 21, 12).to(dtype)
    whole = attended(q, k, v, grad, 0.5)
    alone = attended(q[4:5], k[4:5], v[4:5], grad[4:5], 0.5)
    assert all(torch.equal(a[4:5], b) for a, b in zip(whole, alone, strict=True))
    x, w = torch.randn(150, 300), torch.randn(40, 300)
    packed = calls.linear_weights(w, False, dtype == torch.bfloat16)
    y, slopes = tokens.linear_gelu(x, packed, None, 40, False)
    one, slope = tokens.linear_gelu(x[77:78], packed, None, 40, False)
    assert torch.equal(y[77:78], one)
    assert torch.equal(slopes[77:78], slope)


def arguments() -> dict[str, dict[str, object]]:
    """Arguments of each op, that it takes."""
    q, k, v = heads_of(2, 2, 5, 4, torch.float32)
    heads = {"p": torch.zeros(2, 2, 5, 16), "q": q, "k": k, "v": v, "scale": 1.0}
    by = dict(zip(("dq", "dk", "dv"), heads_of(2, 2, 5, 4, torch.float32), strict=True))
    packed = calls.linear_weights(torch.randn(6, 3), False, False)
    linear = {
        "y": torch.zeros(4, 6), "slopes": torch.zeros(4, 6), "x": torch.randn(4, 3),
        "weights": packed, "bias": torch.zeros(6), "residual": torch.zeros(4, 6), "finish": GELU,
    }  # fmt: skip
    norm = {"kept": torch.zeros(4, 2), "x": torch.randn(4, 3), "gamma": torch.ones(3)}
    return {
        "norm_": {"y": torch.zeros(4, 3), **norm, "beta": None, "eps": 1e-5},
        "norm_gradient_": {
            "y": torch.zeros(4, 3),
            "grad": torch.randn(4, 3),
            **norm,
            "residual": None,
        },
        "linear_": linear,
        "attention_": {"o": torch.zeros(2, 2, 5, 4), **heads},
        "attention_gradient_": {**by, "grad": torch.zeros(2, 2, 5, 4), **heads},
    }


@pytest.mark.parametrize("name", arguments())
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(ops, name).default, tuple(arguments()[name].values()))


@native
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("linear_", {"y": torch.zeros(4, 17)}, "`weights` must be contiguous"),
        ("linear_", {"slopes": None}, "`slopes` must be given"),
        ("linear_", {"slopes": torch.zeros(3, 6)}, "`slopes` must be contiguous"),
        ("linear_", {"residual": torch.zeros(6, 4).t()}, "`residual` must be contiguous"),
        ("linear_", {"x": torch.zeros(4, 3).bfloat16()}, "`x`"),
        ("linear_", {"finish": 4}, "`finish` must be 0 to 3"),
        ("attention_", {"k": torch.zeros(2, 2, 6, 4)}, "`k` must be of `q`'s shape"),
        ("attention_", {"o": torch.zeros(2, 2, 4, 5).transpose(2, 3)}, "side by side"),
        ("attention_", {"p": torch.zeros(2, 2, 5, 5)}, "`p` must be contiguous"),
        ("attention_", {"q": torch.zeros(2, 2, 257, 4)}, "1 to 256 tokens"),
        ("attention_gradient_", {"grad": torch.zeros(2, 2, 5, 4).double()}, "`grad` must be"),
        ("attention_gradient_", {"dv": torch.zeros(2, 1, 5, 4)}, "`dv` must be"),
        ("norm_", {"kept": torch.zeros(3, 2)}, "`kept` must be contiguous"),
        ("norm_", {"gamma": torch.zeros(4)}, "`gamma` must be contiguous"),
        ("norm_gradient_", {"grad": torch.zeros(4, 4)}, "`grad` must be contiguous"),
        ("norm_gradient_", {"residual": torch.zeros(3)}, "`residual` must be contiguous"),
    ],
)
def test_what_would_leave_the_memory_raises(
    name: str, change: dict[str, object], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        getattr(ops, name)(*(arguments()[name] | change).values())


@isas.others
def test_every_instruction_set(isa: str) -> None:
    isas.run_again(
        __file__, isa, "linear_layer or gradient_are_float64s or no_number or do_not_depend"
    )


def test_the_reference_is_the_kernel() -> None:
    """What serves where nothing is compiled."""
    q, k, v = heads_of(2, 2, 9, 6, torch.float32)
    grad, results = torch.randn(2, 2, 9, 6), []
    for module in (ops, reference_tokens):
        o, p = torch.empty(2, 2, 9, 6), torch.empty(2, 2, 9, 16)
        module.attention_(o, p, q, k, v, 0.4)
        grads = [torch.empty(2, 2, 9, 6) for _ in range(3)]
        module.attention_gradient_(*grads, grad, p, q, k, v, 0.4)
        results.append([o, p, *grads])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
