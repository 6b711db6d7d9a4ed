"""What the rewritten graphs of transformers call, beside calls.linear: tokens are (*shape, C)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastadv.engine import calls
from fastadv.engine.calls import Lines
from fastadv.engine.pool import pool
from fastadv.engine.reference_tokens import GELU, GELU_BY_TANH, TIMES, room


def linear_gelu(
    x: Tensor, weights: Tensor, bias: Tensor | None, outputs: int, by_tanh: bool,
    narrow: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(gelu(linear(x)), its slopes there): what the gradient is multiplied by."""
    lines = Lines(x)
    slopes = pool.empty((len(lines.rows), outputs), weights.dtype)
    finish = GELU_BY_TANH if by_tanh else GELU
    y = lines.product(weights, bias, outputs, None, narrow, slopes, finish)
    return y, lines.taken(slopes)


def linear_times(
    grad: Tensor, weights: Tensor, outputs: int, slopes: Tensor, narrow: bool = False
) -> Tensor:
    """linear(grad) * slopes: a linear layer's gradient, and that of the GELU before it."""
    lines = Lines(grad)
    return lines.product(weights, None, outputs, None, narrow, lines.given(slopes), TIMES)


def norm(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float, narrow: bool = False
) -> tuple[Tensor, Tensor]:
    """(the layer norm of x, mean and 1 / sqrt(variance + eps) of each of its rows)."""
    lines = Lines(x)
    rows = lines.rows.contiguous()
    y = pool.empty(tuple(rows.shape), torch.bfloat16 if narrow else torch.float32)
    kept = pool.empty((len(rows), 2), torch.float32)
    calls._ops.norm_(y, kept, rows, gamma, beta, eps)
    return lines.taken(y), lines.taken(kept)


def norm_gradient(
    grad: Tensor, kept: Tensor, x: Tensor, gamma: Tensor | None, residual: Tensor | None
) -> Tensor:
    """The gradient of a layer norm by x, + residual."""
    lines = Lines(x)
    rows = lines.rows.contiguous()
    y = pool.empty(tuple(rows.shape), torch.float32)
    added = None if residual is None else lines.given(residual)
    calls._ops.norm_gradient_(y, lines.given(grad), lines.given(kept), rows, gamma, added)
    return lines.taken(y)


class Place(NamedTuple):
    """Where the heads (N, heads, length, width) stand in a tensor (N, ...): a step of 1 in each of
    their dimensions is `steps` in those of the tensor, and the first number stands at `first`. The
    numbers of a head stand side by side in the tensor's last dimension."""

    heads: tuple[int, ...]  # (heads, length, width)
    first: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]

    def of(self, t: Tensor) -> Tensor:
        """The heads as a view of t, whose numbers a head stand side by side."""
        strides = [sum(s * m for s, m in zip(t.stride(), step, strict=True)) for step in self.steps]
        offset = sum(s * i for s, i in zip(t.stride(), self.first, strict=True))
        if strides[3] != 1 and self.heads[2] != 1:
            return self.of(t.contiguous())
        return t.as_strided((len(t), *self.heads), strides, t.storage_offset() + offset)


Places = tuple[tuple[int, Place], ...]  # of q, k and v: in which source, and where


def attend(
    sources: list[Tensor], places: Places, scale: float, bfloat16: bool, narrow: bool = False
) -> tuple[Tensor, Tensor]:
    """(softmax(scale q k^T) v as (N, heads, length, width), the softmax as it is kept)."""
    q, k, v = _heads(sources, places, bfloat16)
    n, heads, length, width = q.shape
    o = pool.empty((n, length, heads, width), q.dtype).transpose(1, 2)
    p = pool.empty((n, heads, length, room(length, bfloat16)), q.dtype)
    calls._ops.attention_(o, p, q, k, v, scale)
    return (o if narrow else o.float()), p


def attend_gradient(
    grad: Tensor, p: Tensor, sources: list[Tensor], places: Places, scale: float, bfloat16: bool,
    narrow: bool = False,
) -> list[Tensor]:  # fmt: skip
    """The gradients by the sources, all of whose numbers are part of q, k or v."""
    q, k, v = _heads(sources, places, bfloat16)
    grads = [pool.empty(tuple(source.shape), q.dtype) for source in sources]
    parts = _heads(grads, places, bfloat16)
    given = grad.to(q.dtype)
    given = given if given.stride(3) == 1 else given.contiguous()
    calls._ops.attention_gradient_(*parts, given, p, q, k, v, scale)
    return grads if narrow else [by.float() for by in grads]


def _heads(sources: list[Tensor], places: Places, bfloat16: bool) -> list[Tensor]:
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    cast = [source.to(dtype) for source in sources]
    return [place.of(cast[i]) for i, place in places]
