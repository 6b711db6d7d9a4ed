"""Linear layers with what follows them, attention and layer norms: their definition in torch.

Tensors may be bfloat16 where the weights are, or for attention all of them; sums are float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastadv.engine.reference import PANEL
from fastadv.engine.reference_direct import unpack

PLAIN, GELU, GELU_BY_TANH, TIMES = range(4)  # as Finish in csrc/cpu/engine_args.h


def room(length: int, bfloat16: bool) -> int:
    """Keys of a row of p: whole panels, or pairs of them."""
    whole = PANEL * (2 if bfloat16 else 1)
    return -(-length // whole) * whole


def linear_(
    y: Tensor, slopes: Tensor | None, x: Tensor, weights: Tensor, bias: Tensor | None,
    residual: Tensor | None, finish: int,
) -> None:  # fmt: skip
    """y <- finish(x W^T + bias) + residual."""
    w = unpack(weights, y.shape[1], x.shape[1], False, (1, 1)).flatten(1)
    v = x.to(weights.dtype).to(w.dtype) @ w.t()
    v = v if bias is None else v + bias
    if finish == TIMES:
        assert slopes is not None
        v = v * slopes
    elif finish != PLAIN:
        assert slopes is not None
        approximate = "tanh" if finish == GELU_BY_TANH else "none"
        ones = torch.ones_like(v)
        slopes.copy_(torch.ops.aten.gelu_backward(ones, v, approximate=approximate))
        v = F.gelu(v, approximate=approximate)
    y.copy_(v if residual is None else v + residual)


def attention_(o: Tensor, p: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> None:
    """o <- softmax(scale q k^T) v, and p <- the softmax; (N, heads, length, width)."""
    kept = torch.softmax((q.float() * scale) @ k.float().transpose(2, 3), -1)
    p.zero_()[..., : k.shape[2]] = kept
    o.copy_(kept @ v.float())


def attention_gradient_(
    dq: Tensor, dk: Tensor, dv: Tensor, grad: Tensor, p: Tensor, q: Tensor, k: Tensor, v: Tensor,
    scale: float,
) -> None:  # fmt: skip
    """dq, dk, dv <- the gradients by them of attention_, whose o's is `grad`."""
    kept, given = p[..., : k.shape[2]].float(), grad.float()
    by_kept = given @ v.float().transpose(2, 3)
    by_scores = kept * (by_kept - (kept * by_kept).sum(-1, keepdim=True)) * scale
    dq.copy_(by_scores @ k.float())
    dk.copy_(by_scores.transpose(2, 3) @ q.float())
    dv.copy_(kept.transpose(2, 3) @ given)


def norm_(
    y: Tensor, kept: Tensor, x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> None:
    """y <- the layer norm of each row of x, kept <- (mean, 1 / sqrt(variance + eps)) of each."""
    variance, mean = torch.var_mean(x, 1, correction=0)
    kept.copy_(torch.stack([mean, torch.rsqrt(variance + eps)], 1))
    v = (x - kept[:, :1]) * kept[:, 1:]
    v = v if gamma is None else v * gamma
    y.copy_(v if beta is None else v + beta)


def norm_gradient_(
    y: Tensor, grad: Tensor, kept: Tensor, x: Tensor, gamma: Tensor | None, residual: Tensor | None
) -> None:
    """y <- the gradient by x of norm_, whose y's is `grad`, + residual."""
    normal, g = (x - kept[:, :1]) * kept[:, 1:], grad if gamma is None else grad * gamma
    v = g - g.mean(1, keepdim=True) - normal * (g * normal).mean(1, keepdim=True)
    v = v * kept[:, 1:]
    y.copy_(v if residual is None else v + residual)
