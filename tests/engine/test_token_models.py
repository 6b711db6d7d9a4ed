"""Models of tokens: what is served, however they split their heads, and what stays torch's."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastadv as fa
from fastadv.engine.dense_plan import multiplies_bfloat16

X, Y = torch.tensor(0.6), torch.tensor(0.8)


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
        if self.how == "interleaved":
            return self.qkv(x).view(n, length, self.heads, 3, -1).permute(3, 0, 2, 1, 4).unbind(0)
        if self.how == "turned":
            return self.qkv(x).view(n, length, 3, -1, self.heads).permute(2, 0, 4, 1, 3).unbind(0)
        if self.how == "shared":  # k and v are one
            q = self.q(x).view(shape).transpose(1, 2)
            return q, *[self.k(x).view(shape).transpose(1, 2)] * 2
        if self.how == "shared, viewed twice":
            return tuple(t.view(shape).transpose(1, 2) for t in (self.q(x), *[self.k(x)] * 2))
        if self.how == "one key for all":
            q = self.q(x).view(shape).transpose(1, 2)
            return q, *(f(x)[:, None, :, : q.shape[3]].expand_as(q) for f in (self.k, self.v))
        if self.how == "rotated":
            turned = self.qkv(x).view(n, length, 3, 2, self.heads, -1).permute(2, 0, 4, 1, 5, 3)
            by = torch.view_as_complex(turned.contiguous()) * torch.complex(X, Y)
            return torch.view_as_real(by).flatten(4).unbind(0)
        if self.how == "copied":
            turned = self.qkv(x).view(n, length, 3, -1, self.heads).permute(2, 0, 4, 1, 3)
            return turned.contiguous().unbind(0)
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
    "interleaved": (lambda: Attention("interleaved"), True),
    "turned": (lambda: Attention("turned"), False),
    "one number a head": (lambda: Attention("unbind", heads=36), True),
    "apart": (lambda: Attention("apart"), True),
    "shared": (lambda: Attention("shared"), True),
    "shared, viewed twice": (lambda: Attention("shared, viewed twice"), True),
    "one key for all": (lambda: Attention("one key for all"), True),
    "rotated": (lambda: Attention("rotated"), True),
    "copied, causal": (lambda: Attention("copied", is_causal=True), False),
    "scaled": (lambda: Attention("scaled", scale=0.7), True),
    "by hand": (lambda: Attention("by hand"), False),
    "causal": (lambda: Attention("unbind", is_causal=True), False),
    "mask": (lambda: Attention("unbind", attn_mask=MASK), False),
    "encoder, norm first": (lambda: layer(norm_first=True), True),
    "encoder, tokens first": (lambda: layer(batch_first=False), True),
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
    model, x = Tokens("encoder, norm first").eval(), torch.rand(3, 3, 16, 16)
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
