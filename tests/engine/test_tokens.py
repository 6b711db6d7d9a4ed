"""Linear layers with what follows them, and attention a head at a time: ops, and models."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastadv as fa
from fastadv import _native
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
    return {
        "linear_": linear,
        "attention_": {"o": torch.zeros(2, 2, 5, 4), **heads},
        "attention_gradient_": {**by, "grad": torch.zeros(2, 2, 5, 4), **heads},
    }


@pytest.mark.parametrize("name", ["linear_", "attention_", "attention_gradient_"])
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
    ],
)
def test_what_would_leave_the_memory_raises(
    name: str, change: dict[str, object], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        getattr(ops, name)(*(arguments()[name] | change).values())


@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set(isa: str) -> None:
    if isa not in _native.processor()["available"] or "FASTADV_CPU_CAPABILITY" in os.environ:
        pytest.skip("not built, or asked for by hand")
    chosen = "linear_layer or gradient_are_float64s or no_number or do_not_depend"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", chosen, __file__]
    environment = {**os.environ, "FASTADV_CPU_CAPABILITY": isa, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


class Attention(nn.Module):
    """A block of a transformer, its heads split and joined as libraries do."""

    def __init__(self, how: str, width: int = 36, heads: int = 3, **options: object) -> None:
        super().__init__()
        self.how, self.heads, self.options = how, heads, options
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=how != "unbind")
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def _split(self, x: Tensor) -> tuple[Tensor, ...]:
        n, length, _ = x.shape
        shape = (n, length, self.heads, -1)
        if self.how == "apart":
            return tuple(f(x).view(shape).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.how == "chunk":
            return tuple(t.reshape(shape).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if self.how == "interleaved":
            return self.qkv(x).view(n, length, self.heads, 3, -1).permute(3, 0, 2, 1, 4).unbind(0)
        if self.how == "shared":  # k and v are one
            q = self.q(x).view(shape).transpose(1, 2)
            return q, *[self.k(x).view(shape).transpose(1, 2)] * 2
        if self.how == "scaled":  # what no view is
            return tuple(2 * t.view(shape).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.qkv(x).reshape(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._split(self.norm(x))
        if self.how == "by hand":
            o = torch.softmax(q @ k.transpose(2, 3) * q.shape[3] ** -0.5, -1) @ v
        else:
            o = F.scaled_dot_product_attention(q, k, v, **self.options)  # type: ignore[arg-type]
        x = x + self.out(o.transpose(1, 2).reshape(x.shape))
        return x + self.down(F.gelu(self.up(x), approximate="tanh"))


def layer(**options: object) -> nn.Module:
    given = {"dropout": 0.0, "activation": "gelu", "batch_first": True} | options
    return nn.TransformerEncoderLayer(36, 3, 72, **given)  # type: ignore[arg-type]


MASK = torch.ones(17, 17).tril().bool()
MODELS = {
    "unbind": (lambda: Attention("unbind"), True),
    "chunk": (lambda: Attention("chunk"), True),
    "interleaved": (lambda: Attention("interleaved"), True),
    "apart": (lambda: Attention("apart"), True),
    "shared": (lambda: Attention("shared"), True),
    "scaled": (lambda: Attention("scaled", scale=0.7), True),
    "by hand": (lambda: Attention("by hand"), False),
    "causal": (lambda: Attention("unbind", is_causal=True), False),
    "mask": (lambda: Attention("unbind", attn_mask=MASK), False),
    "encoder, norm first": (lambda: layer(norm_first=True), True),
    "encoder, tokens first": (lambda: layer(batch_first=False), True),
    "encoder, relu": (lambda: layer(activation="relu"), True),
}


class Tokens(nn.Module):
    """16 patches and a class token, two blocks, and the logits of the class token."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.turned = "tokens first" in name
        self.patches = nn.Conv2d(3, 36, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 36))
        self.blocks = nn.Sequential(MODELS[name][0](), MODELS[name][0]())
        self.head = nn.Sequential(nn.LayerNorm(36), nn.Linear(36, 20), nn.GELU(), nn.Linear(20, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([x, self.token.expand(len(x), -1, -1)], 1)
        x = self.blocks(x.transpose(0, 1)).transpose(0, 1) if self.turned else self.blocks(x)
        return self.head(x[:, -1])


def gradient(model: nn.Module, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    loss = F.cross_entropy(model(leaf), torch.arange(len(x)), reduction="sum")
    return torch.autograd.grad(loss, leaf)[0]


def compiled(model: nn.Module, **options: str) -> nn.Module:
    fast = fa.compile(model, **options)
    fast._static_batch = True  # half the time to trace
    return fast


@pytest.mark.parametrize("name", MODELS)
def test_models_of_tokens(name: str) -> None:
    torch.manual_seed(0)
    model, x = Tokens(name).eval(), torch.rand(3, 3, 16, 16)
    exact = gradient(copy.deepcopy(model).double(), x.double())
    fast = compiled(model)
    fast._bypass = None
    error = (gradient(fast, x) - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert float(error.median()) <= 1e-5
    assert float(error.max()) <= 1e-4
    if fa.backend().is_native:
        assert ("a head at a time" in str(fast.report())) == MODELS[name][1]


@pytest.mark.skipif(not multiplies_bfloat16(), reason="no products of bfloat16 here")
def test_tokens_in_bfloat16() -> None:
    torch.manual_seed(0)
    for name in ("unbind", "encoder, norm first"):
        model, x = Tokens(name).eval(), torch.rand(3, 3, 16, 16)
        found, exact = gradient(compiled(model, precision="bfloat16"), x), gradient(model, x)
        assert 0 < float((found - exact).norm()) <= 5e-2 * float(exact.norm())


def test_dropout_in_train_mode_stays_torchs() -> None:
    model, x = Tokens("encoder, norm first").train(), torch.rand(3, 3, 16, 16)
    for block in model.blocks:
        block.self_attn.dropout = 0.5
    fast = compiled(model)
    grads = []
    for module in (fast, model):
        torch.manual_seed(1)
        grads.append(gradient(module, x))
    assert not torch.equal(gradient(fast, x), grads[0])  # it drops anew
    assert grads[0].isfinite().all()


def test_what_is_read_as_it_was_is_copied() -> None:
    """A view's copy that is a result keeps its memory to itself."""

    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.layer(x.flatten(2).transpose(1, 2))
            return y, y.clone()

    model, x = Copies(), torch.rand(2, 16, 4, 4).requires_grad_()
    fast = compiled(model, precision="bfloat16" if multiplies_bfloat16() else "float32")
    fast._bypass = None
    y, same = fast(x)
    assert y.data_ptr() != same.data_ptr()
    assert torch.equal(y, same)
    (found,) = torch.autograd.grad(y.sum() + same.square().sum(), x)
    a, b = model(x)
    (exact,) = torch.autograd.grad(a.sum() + b.square().sum(), x)
    torch.testing.assert_close(found, exact, rtol=2e-2, atol=2e-2)


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
