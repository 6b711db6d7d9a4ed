"""How bench.table calls what is no convolution: our kernel, and what torch runs in its place.

A kernel that takes a gradient is compared to torch's ops for it, without autograd around them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fastadv.engine import calls, tokens
from fastadv.engine.speeds import Case
from fastadv.engine.tokens import Place

aten = torch.ops.aten
Call = Callable[[], Tensor]


@dataclass(frozen=True)
class Pair:
    """own: None where a pass of torch's is not run at all. exact: the result in float64."""

    own: Call | None
    plain: Call
    exact: Callable[[], Tensor]


def pair(case: Case, bfloat16: bool) -> Pair:
    """The calls of a case."""
    return _PAIRS[case.op](case, bfloat16)


def _linear(case: Case, bfloat16: bool) -> Pair:
    x, w, bias = _rows(case, case.inputs), _weight(case), torch.randn(case.outputs)
    packed = calls.linear_weights(w, False, bfloat16)
    return Pair(
        lambda: calls.linear(x, packed, bias, case.outputs),
        lambda: functional.linear(x, w, bias),
        lambda: functional.linear(x.double(), w.double(), bias.double()),
    )


def _gelu(case: Case, bfloat16: bool) -> Pair:
    x, w, bias = _rows(case, case.inputs), _weight(case), torch.randn(case.outputs)
    packed = calls.linear_weights(w, False, bfloat16)
    return Pair(
        lambda: tokens.linear_gelu(x, packed, bias, case.outputs, False)[0],
        lambda: functional.gelu(functional.linear(x, w, bias)),
        lambda: functional.gelu(functional.linear(x.double(), w.double(), bias.double())),
    )


def _times(case: Case, bfloat16: bool) -> Pair:
    """The gradient of a linear layer (outputs, inputs), given its input z, a GELU's output."""
    grad, z, w = _rows(case, case.inputs), _rows(case, case.outputs), _weight(case)
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    slopes = aten.gelu_backward(torch.ones_like(z), z).to(dtype)
    packed = calls.linear_weights(w, False, bfloat16)
    back = w.t().contiguous()
    return Pair(
        lambda: tokens.linear_times(grad, packed, case.outputs, slopes),
        lambda: aten.gelu_backward(grad @ back, z),
        lambda: aten.gelu_backward(grad.double() @ back.double(), z.double()),
    )


class _Heads:
    """q, k and v as a transformer has them: views of what one linear layer wrote."""

    def __init__(self, case: Case, bfloat16: bool) -> None:
        n, length, heads, width = int(case.batch), case.height, case.outputs, case.inputs
        self.packed = torch.randn(n, length, 3 * heads * width)
        self.shape = n, length, 3, heads, width
        steps = ((1, 0, 0), (0, 0, width), (0, 1, 0), (0, 0, 1))
        firsts = [(0, 0, i * heads * width) for i in range(3)]
        self.places = tuple((0, Place((heads, length, width), first, steps)) for first in firsts)
        self.scale, self.bfloat16 = width**-0.5, bfloat16
        self.grad = torch.randn(n, length, heads, width).transpose(1, 2)

    def own(self) -> tuple[Tensor, Tensor]:
        return tokens.attend([self.packed], self.places, self.scale, self.bfloat16)

    def plain(self, packed: Tensor) -> Tensor:
        """As nn.MultiheadAttention writes it: the heads joined to tokens again."""
        q, k, v = packed.view(self.shape).permute(2, 0, 3, 1, 4).unbind(0)
        o = functional.scaled_dot_product_attention(q, k, v)
        return o.transpose(1, 2).flatten(2)


def _attention(case: Case, bfloat16: bool) -> Pair:
    heads = _Heads(case, bfloat16)
    return Pair(
        lambda: heads.own()[0].transpose(1, 2).flatten(2),
        lambda: heads.plain(heads.packed),
        lambda: heads.plain(heads.packed.double()),
    )


def _attention_gradient(case: Case, bfloat16: bool) -> Pair:
    heads = _Heads(case, bfloat16)
    p, grad = heads.own()[1], heads.grad
    joined = grad.transpose(1, 2).flatten(2)
    with torch.enable_grad():
        leaf = heads.packed.clone().requires_grad_()
        y = heads.plain(leaf)
    more = heads.places, heads.scale, bfloat16

    def exact() -> Tensor:
        with torch.enable_grad():
            leaf = heads.packed.double().requires_grad_()
            found: Tensor = torch.autograd.grad(heads.plain(leaf), leaf, joined.double())[0]
        return found

    return Pair(
        lambda: tokens.attend_gradient(grad, p, [heads.packed], *more)[0],
        lambda: torch.autograd.grad(y, leaf, joined, retain_graph=True)[0],
        exact,
    )


def _pool(case: Case, bfloat16: bool) -> Pair:
    x, size, form = _pooled(case)
    contiguous = x.contiguous()
    return Pair(
        lambda: calls.max_pool(x, size, *form)[0],
        lambda: aten.max_pool2d_with_indices(contiguous, *form)[0],
        lambda: aten.max_pool2d_with_indices(x.double(), *form)[0],
    )


def _pool_gradient(case: Case, bfloat16: bool) -> Pair:
    x, size, form = _pooled(case)
    grad = _images(case, case.height)
    taken, contiguous, given = calls.max_pool(x, size, *form)[1], x.contiguous(), grad.contiguous()
    indices = aten.max_pool2d_with_indices(contiguous, *form)[1]
    more = (*form, (1, 1), False, indices)
    return Pair(
        lambda: calls.max_pool_gradient(grad, taken, None, None, tuple(x.shape[2:]), *form),  # type: ignore[arg-type]
        lambda: aten.max_pool2d_with_indices_backward(given, contiguous, *more),
        lambda: aten.max_pool2d_with_indices_backward(given.double(), x.double(), *more),
    )


def _norm(case: Case, bfloat16: bool) -> Pair:
    x, numbers = _images(case, case.height).contiguous(), _statistics(case.inputs)
    run, exact = aten._native_batch_norm_legit_no_training, [t.double() for t in numbers]
    return Pair(
        None,
        lambda: run(x, *numbers, 0.1, 1e-5)[0],
        lambda: run(x.double(), *exact, 0.1, 1e-5)[0],
    )


def _norm_gradient(case: Case, bfloat16: bool) -> Pair:
    grad, (gamma, _, mean, variance) = _images(case, case.height), _statistics(case.inputs)
    grad = grad.contiguous()
    x, empty = torch.randn_like(grad), grad.new_empty(0)
    more = (empty, empty, False, 1e-5, [True, False, False])
    scale = (gamma.double() / (variance.double() + 1e-5).sqrt())[:, None, None]
    return Pair(
        None,
        lambda: aten.native_batch_norm_backward(grad, x, gamma, mean, variance, *more)[0],
        lambda: grad.double() * scale,
    )


def _layer_norm(case: Case, bfloat16: bool) -> Pair:
    x, (gamma, beta, *_) = _rows(case, case.inputs), _statistics(case.inputs)
    shape = [case.inputs]
    return Pair(
        lambda: tokens.norm(x, gamma, beta, 1e-5)[0],
        lambda: aten.native_layer_norm(x, shape, gamma, beta, 1e-5)[0],
        lambda: aten.native_layer_norm(x.double(), shape, gamma.double(), beta.double(), 1e-5)[0],
    )


def _layer_norm_gradient(case: Case, bfloat16: bool) -> Pair:
    x, grad = _rows(case, case.inputs), _rows(case, case.inputs)
    gamma, beta, *_ = _statistics(case.inputs)
    kept = tokens.norm(x, gamma, beta, 1e-5)[1]

    def plain(dtype: torch.dtype) -> Call:
        g, t, scale, shift = (one.to(dtype) for one in (grad, x, gamma, beta))
        _, mean, scales = aten.native_layer_norm(t, [case.inputs], scale, shift, 1e-5)
        given = (g, t, [case.inputs], mean, scales, scale, shift, [True, False, False])
        return lambda: aten.native_layer_norm_backward(*given)[0]

    own = lambda: tokens.norm_gradient(grad, kept, x, gamma, None)  # noqa: E731
    return Pair(own, plain(torch.float32), plain(torch.float64))


_PAIRS: dict[str, Callable[[Case, bool], Pair]] = {
    "linear": _linear,
    "linear gelu": _gelu,
    "linear times": _times,
    "attention": _attention,
    "attention gradient": _attention_gradient,
    "pool": _pool,
    "pool gradient": _pool_gradient,
    "norm": _norm,
    "norm gradient": _norm_gradient,
    "layer norm": _layer_norm,
    "layer norm gradient": _layer_norm_gradient,
}


def _rows(case: Case, width: int) -> Tensor:
    return torch.randn(int(case.batch), width)


def _weight(case: Case) -> Tensor:
    w: Tensor = torch.randn(case.outputs, case.inputs) / case.inputs**0.5
    return w


def _images(case: Case, side: int) -> Tensor:
    return torch.randn(int(case.batch), side, side, case.inputs).permute(0, 3, 1, 2)


def _statistics(channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """gamma, beta, mean, variance."""
    gamma, beta, mean, variance = torch.rand(4, channels).unbind(0)
    return gamma + 0.5, beta, mean, variance + 0.5


def _pooled(case: Case) -> tuple[Tensor, tuple[int, int], tuple[tuple[int, int], ...]]:
    """(x, the output's size, window, stride and padding)."""
    window, stride = int(case.window), int(case.stride)
    around = (window - 1) // 2
    form = ((window, window), (stride, stride), (around, around))
    return _images(case, case.height * stride), (case.height, case.height), form
