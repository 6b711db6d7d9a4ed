"""dense_pgd_ in plain torch: its definition and its oracle; and how a layer's weights are packed.

Columns stand in panels of PANEL, zeros beyond the last: (panels, depth, PANEL) of float32, or
(panels, ceil(depth / 2), PANEL, 2) of bfloat16. A layer's forward has its outputs as columns and
its inputs as depth, its gradient the other way round.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from fastadv import reference
from fastadv.engine.reference import PANEL, panels
from fastadv.engine.reference_activations import NAMES, activate
from fastadv.reference_head import head as reference_head


def pack(weight: Tensor, bfloat16: bool) -> Tensor:
    """(columns, depth) to panels."""
    columns, depth = weight.shape
    extra = (0, depth % 2 if bfloat16 else 0, 0, -columns % PANEL)
    padded = F.pad(weight, extra) if any(extra) else weight
    if bfloat16:
        pairs = padded.bfloat16().reshape(panels(columns), PANEL, -1, 2)
        return pairs.transpose(1, 2).contiguous()
    return padded.reshape(panels(columns), PANEL, depth).transpose(1, 2).contiguous()


def pack_bias(bias: Tensor | None, like: Tensor) -> Tensor:
    """(outputs,) in whole panels; `like` is the weight."""
    outputs = len(like)
    if bias is None:
        return like.new_zeros(panels(outputs) * PANEL)
    return F.pad(bias.detach(), (0, -outputs % PANEL)) if outputs % PANEL else bias.detach()


def unpack(packed: Tensor, columns: int, depth: int) -> Tensor:
    """The inverse of `pack`, in float32."""
    rows = packed.transpose(1, 2).reshape(len(packed) * PANEL, -1)
    return rows[:columns, :depth].float()


DENSE = NAMES[: NAMES.index("sigmoid") + 1]  # those that a stack has


def _rounded(v: Tensor, like: Tensor) -> Tensor:
    """As the products take it: rounded to bfloat16 where the weights are so."""
    return v.bfloat16().float() if like.dtype == torch.bfloat16 else v


def _forward(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], sizes: list[int],
    activations: list[int], leaks: list[float],
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """(the logits, each layer's slopes)."""
    z, slopes = x.reshape(len(x), sizes[0]), []
    layers = zip(weights, biases, pairwise(sizes), activations, leaks, strict=True)
    for packed, bias, (inputs, outputs), activation, leak in layers:
        matrix = unpack(packed, outputs, inputs)
        z, slope = activate(_rounded(z, packed) @ matrix.T + bias[:outputs], activation, leak)
        slopes.append(slope)
    return z, slopes


def _backward(
    grad: Tensor, weights: list[Tensor], sizes: list[int], slopes: list[Tensor]
) -> Tensor:
    layers = list(zip(weights, pairwise(sizes), slopes, strict=True))
    for packed, (inputs, outputs), slope in reversed(layers):
        grad = _rounded(torch.where(slope == 0, 0, grad * slope), packed)
        grad = grad @ unpack(packed, outputs, inputs)
    return grad


def dense_pass_(
    to: Tensor, slopes: Tensor, from_: Tensor, weights: list[Tensor], gradients: list[Tensor],
    biases: list[Tensor], sizes: list[int], activations: list[int], leaks: list[float],
    gradient: bool,
) -> None:  # fmt: skip
    """to <- the logits of `from_`, and their slopes; or the gradient by the stack's input of a
    gradient by its logits. Slopes are of whole panels, all samples of a layer together."""
    widths = [len(from_) * panels(outputs) * PANEL for outputs in sizes[1:]]
    parts = [part.view(len(from_), -1) for part in torch.split(slopes.view(-1), widths)]
    if gradient:
        kept = [part[:, :outputs] for part, outputs in zip(parts, sizes[1:], strict=True)]
        to.copy_(_backward(from_, weights, sizes, kept).view_as(to))
        return
    logits, found = _forward(from_, weights, biases, sizes, activations, leaks)
    for part, slope in zip(parts, found, strict=True):
        part[:, : slope.shape[1]] = slope
    to.copy_(logits.view_as(to))


def dense_pgd_(
    x_adv: Tensor, seen: Tensor, x: Tensor, step_size: Tensor, radius: Tensor,
    bounds: Tensor | None, norm: int, top: float, steps: int, weights: list[Tensor],
    gradients: list[Tensor], biases: list[Tensor], sizes: list[int], activations: list[int],
    leaks: list[float], y: Tensor, target: Tensor | None, head: int, targeted: bool,
) -> None:  # fmt: skip
    """`steps` times x_adv <- P(x_adv + step_size * direction(grad)) in the ball `norm` (linf, l2,
    l1); `seen` is set to NaN where a loss or a gradient is no number. bfloat16 weights: the
    products are of bfloat16 numbers, summed in float32."""
    step = (reference.step_linf_, reference.step_l2_, reference.step_l1_)[norm]
    rule = (True, top) if norm == 2 else (True,)
    for k in range(steps):
        z, slopes = _forward(x_adv, weights, biases, sizes, activations, leaks)
        if k == 0:
            seen[(z.isnan() | z.isposinf()).any(1)] = torch.nan
        loss, grad, _ = reference_head(z, y, target, head, targeted)
        grad = _backward(grad, weights, sizes, slopes)
        seen[loss.isnan() | ~grad.isfinite().all(1)] = torch.nan
        step(x_adv, grad.view_as(x_adv), x, step_size, radius, bounds, *rule)
