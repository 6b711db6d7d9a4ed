"""dense_pgd_ in plain torch: its definition and its oracle; and how a layer's weights are packed.

Columns stand in panels of PANEL, zeros beyond the last: (panels, depth, PANEL) of float32, or
(panels, ceil(depth / 2), PANEL, 2) of bfloat16. A layer's forward has its outputs as columns and
its inputs as depth, its gradient the other way round.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastadv import reference
from fastadv.engine.reference import PANEL, panels
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
    full = like.new_zeros(panels(outputs) * PANEL)
    if bias is not None:
        full[:outputs] = bias.detach()
    return full


def unpack(packed: Tensor, columns: int, depth: int) -> Tensor:
    """The inverse of `pack`, in float32."""
    rows = packed.transpose(1, 2).reshape(len(packed) * PANEL, -1)
    return rows[:columns, :depth].float()


NAMES = ("none", "relu", "leaky_relu", "gelu", "gelu (tanh)", "tanh", "sigmoid")  # by number


def activate(z: Tensor, activation: int, leak: float) -> tuple[Tensor, Tensor]:
    """(activation(z), its slope there), with torch's values where the slope jumps."""
    one, name = torch.ones_like(z), NAMES[activation]
    if name == "relu":
        return z.relu(), torch.where(z <= 0, 0, one)
    if name == "leaky_relu":
        return F.leaky_relu(z, leak), torch.where(z > 0, one, leak)
    if name.startswith("gelu"):
        kind = "tanh" if name.endswith("(tanh)") else "none"
        slope = torch.ops.aten.gelu_backward(one, z, approximate=kind)
        return F.gelu(z, approximate=kind), slope
    if name == "tanh":
        return z.tanh(), 1 - z.tanh() ** 2
    if name == "sigmoid":
        return z.sigmoid(), z.sigmoid() * (1 - z.sigmoid())
    return z, one


def dense_pgd_(
    x_adv: Tensor, seen: Tensor, x: Tensor, step_size: Tensor, radius: Tensor,
    bounds: Tensor | None, norm: int, top: float, steps: int, weights: list[Tensor],
    gradients: list[Tensor], biases: list[Tensor], sizes: list[int], activations: list[int],
    leaks: list[float], y: Tensor, target: Tensor | None, head: int, targeted: bool,
) -> None:  # fmt: skip
    """`steps` times x_adv <- P(x_adv + step_size * direction(grad)) in the ball `norm` (linf, l2,
    l1); `seen` is set to NaN where a loss or a gradient is no number. bfloat16 weights: the
    products are of bfloat16 numbers, summed in float32."""
    rounds = weights[0].dtype == torch.bfloat16
    matrices = [unpack(w, o, i) for w, i, o in zip(weights, sizes, sizes[1:], strict=False)]
    step = (reference.step_linf_, reference.step_l2_, reference.step_l1_)[norm]

    def rounded(v: Tensor) -> Tensor:
        return v.bfloat16().float() if rounds else v

    for k in range(steps):
        z, slopes = x_adv.reshape(len(x_adv), -1), []
        for w, b, activation, leak in zip(matrices, biases, activations, leaks, strict=True):
            z, slope = activate(rounded(z) @ w.T + b[: len(w)], activation, leak)
            slopes.append(slope)
        if k == 0:
            seen[(z.isnan() | z.isposinf()).any(1)] = torch.nan
        loss, grad, _ = reference_head(z, y, target, head, targeted)
        for w, slope in zip(reversed(matrices), reversed(slopes), strict=True):
            grad = rounded(torch.where(slope == 0, 0, grad * slope)) @ w
        seen[loss.isnan() | ~grad.isfinite().all(1)] = torch.nan
        rule = (True, top) if norm == 2 else (True,)
        step(x_adv, grad.view_as(x_adv), x, step_size, radius, bounds, *rule)
