"""Winograd's convolutions in a few lines of torch: their definition, and their oracle.

y is A^T ((G g G^T) * (B^T d B)) A for each tile (Lavin and Gray, 1509.09308, section 4). Images are
channels last here, (N, H, W, C), and contiguous so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from fastadv.engine.reference import PANEL, panels
from fastadv.engine.reference_activations import finished, times_slopes

Matrix = list[list[float]]


def _points(finite: list[float], outputs: int) -> tuple[Matrix, Matrix, Matrix]:
    """(A^T, B^T, G) of Toom and Cook for these points and infinity.

    Column p of A^T holds the powers of p; row p of B^T the coefficients of the polynomial that is
    zero at the other points, and of G the powers of p over that polynomial at p.
    """
    others = [[q for q in finite if q != p] for p in finite]
    taps = len(finite) + 2 - outputs
    at = [[p**k for p in finite] + [float(k == outputs - 1)] for k in range(outputs)]
    bt = [[*_polynomial(zeros), 0.0] for zeros in others] + [_polynomial(finite)]
    at_p = [math.prod(p - q for q in zeros) for p, zeros in zip(finite, others, strict=True)]
    g = [[p**k / value for k in range(taps)] for p, value in zip(finite, at_p, strict=True)]
    return at, bt, [*g, [float(k == taps - 1) for k in range(taps)]]


def _polynomial(zeros: list[float]) -> list[float]:
    """The coefficients of the product of all x - zero, from that of 1 on."""
    found = [1.0]
    for zero in zeros:
        found = [a - zero * b for a, b in zip([0.0, *found], [*found, 0.0], strict=True)]
    return found


# csrc/cpu/winograd_transform.h says why these.
_AT3, _BT3, _G3 = _points([0, 1, -1, 1 / 2, -2], outputs=4)
_AT2, _BT2, _G2 = _points([0, 1, -1 / 2, -2], outputs=4)


def _zeros(rows: int, columns: int) -> Matrix:
    return [[0.0] * columns for _ in range(rows)]


def _strided() -> tuple[Matrix, Matrix]:
    """(A^T, B^T) with stride 2: two taps on the even pixels of a patch of 9, one on the odd."""
    at, bt = _zeros(4, 9), _zeros(9, 9)
    for k in range(4):
        at[k][:5], at[k][5 + k], bt[5 + k][2 * k + 1] = _AT2[k], 1, 1
    for k in range(5):
        bt[k][::2] = _BT2[k]
    return at, bt


def _strided_gradient() -> tuple[Matrix, Matrix]:
    """Its gradient's: two taps make the odd pixels of a tile of 8, one the even."""
    at, bt = _zeros(8, 9), _zeros(9, 5)
    for k in range(4):
        at[2 * k + 1][:5], at[2 * k][5 + k], bt[5 + k][k] = _AT2[k], 1, 1
    for k in range(5):
        bt[k][:] = _BT2[k]
    return at, bt


@dataclass(frozen=True)
class Form:
    """A^T, B^T, and the distance between the patches of two tiles."""

    at: Matrix
    bt: Matrix
    step: int


PLAIN, STRIDED, STRIDED_GRADIENT = range(3)  # as in csrc/cpu/engine_args.h
LEARN_TILES, LEARN_PANELS = 64, (2, 4)  # the same
_FORMS = (Form(_AT3, _BT3, 4), Form(*_strided(), 8), Form(*_strided_gradient(), 4))


@lru_cache(maxsize=4)
def _taps(gradient: bool, strided: bool) -> Tensor:  # (36, 9)
    with torch.inference_mode(False):
        g = torch.tensor(_G3, dtype=torch.float64)
        if strided:  # the middle tap has a part of its own
            g = torch.zeros(6, 3, dtype=torch.float64)
            g[:5, ::2] = torch.tensor(_G2, dtype=torch.float64)
            g[5, 1] = 1
        taps = torch.einsum("ai,bj->abij", g, g).reshape(36, 9)
        return (taps.flip(1) if gradient else taps).contiguous()


def transformed_shape(
    outputs: int, channels: int, bfloat16: bool
) -> tuple[tuple[int, ...], torch.dtype]:
    """The shape and the dtype of transformed weights."""
    if bfloat16:
        return (36, panels(outputs), -(-channels // 2), PANEL, 2), torch.bfloat16
    return (36, panels(outputs), channels, PANEL), torch.float32


def winograd_weights(
    weight: Tensor,  # (K, C, 3, 3)
    scale: Tensor | None,  # (K,)
    gradient: bool,
    strided: bool = False,
    bfloat16: bool = False,
) -> Tensor:  # as transformed_shape says, or with C and K exchanged
    """G (scale * weight) G^T as the kernel reads it: of the convolution, or of its gradient.

    One GEMM: the 36 combinations of the 9 taps; the gradient's taps are turned round. In bfloat16
    pairs of channels stand together.
    """
    w = weight.detach().flatten(2)  # (K, C, 9)
    if scale is not None:
        w = w * scale[:, None, None]
    if gradient:
        w = w.transpose(0, 1)
    w = F.pad(w, (0, 0, 0, w.shape[1] % 2 if bfloat16 else 0, 0, -len(w) % PANEL))
    taps = w.reshape(-1, PANEL, w.shape[1], 9).permute(3, 0, 2, 1).contiguous()
    packed = (_taps(gradient, strided).to(taps.dtype) @ taps.view(9, -1)).view(36, *taps.shape[1:])
    if not bfloat16:
        return packed
    paired = packed.view(36, len(packed[0]), -1, 2, PANEL)
    return paired.transpose(3, 4).bfloat16().contiguous()


def winograd_weights_(
    weights: Tensor, weight: Tensor, scale: Tensor | None, gradient: bool, strided: bool
) -> None:
    """weights <- winograd_weights of their dtype."""
    bfloat16 = weights.dtype == torch.bfloat16
    weights.copy_(winograd_weights(weight, scale, gradient, strided, bfloat16))


def winograd_(
    y: Tensor, kept: Tensor | None, x: Tensor, weights: Tensor, bias: Tensor | None,
    residual: Tensor | None, padding: int, form: int, activation: int, numbers: list[float],
) -> None:  # fmt: skip
    """y <- activation(conv3x3(x) + bias + residual), kept <- its slopes."""
    v = _convolved(y, x, weights, padding, form)
    v = v if bias is None else v + bias
    v = v if residual is None else v + residual
    y.copy_(finished(v, kept, activation, numbers))


def winograd_gradient_(
    y: Tensor, x: Tensor, weights: Tensor, residual: Tensor | None, slopes: Tensor | None,
    leak: float, padding: int, form: int,
) -> None:  # fmt: skip
    """y <- (the gradient by its input of a convolution whose output's is x, + residual) * slopes;
    of form PLAIN it is a convolution, of its weights turned round."""
    v = _convolved(y, x, weights, padding, form)
    y.copy_(times_slopes(v if residual is None else v + residual, slopes, leak))


def _convolved(y: Tensor, x: Tensor, weights: Tensor, padding: int, form: int) -> Tensor:
    """The convolution of x, or the strided form's gradient, of y's size."""
    (_, height, width, channels), (_, rows, columns, outputs) = x.shape, y.shape
    at, bt = x.new_tensor(_FORMS[form].at), x.new_tensor(_FORMS[form].bt)
    (tile, parts), patch, step = at.shape, bt.shape[1], _FORMS[form].step
    before = 0 if form == STRIDED_GRADIENT else padding
    down, across = -(-rows // tile), -(-columns // tile)
    below, right = (step * (n - 1) + patch - before for n in (down, across))
    d = F.pad(x, (0, 0, before, right - width, before, below - height))
    d = d.unfold(1, patch, step).unfold(2, patch, step)
    t, u = torch.einsum("ai,nxycij,bj->nxyabc", bt, d, bt), weights
    if weights.dtype == torch.bfloat16:  # the products' factors are rounded, the sums are not
        t, u = t.bfloat16().float(), weights.float().transpose(3, 4).flatten(2, 3)
    u = u.transpose(2, 3).reshape(6, 6, -1, u.shape[2])[:, :, :outputs, :channels]
    which = torch.arange(parts).clamp(max=5)  # the middle tap's parts share their weights
    m = torch.einsum("nxyabc,abkc->nxyabk", t, u[which][:, which])
    v = torch.einsum("ia,nxyabk,jb->nxiyjk", at, m, at).flatten(3, 4).flatten(1, 2)
    return v[:, :rows, :columns]


def learn_scratch(x: Tensor, grad: Tensor) -> int:
    """How many numbers winograd_weight_gradient_ needs to work with."""
    (_, _, _, channels), (n, rows, columns, outputs) = x.shape, grad.shape
    tiles = n * -(-rows // 4) * -(-columns // 4)
    blocks = max(1, -(-tiles // LEARN_TILES))
    block, across, down = -(-tiles // blocks), panels(channels), panels(outputs)
    tasks = -(-across // LEARN_PANELS[1]) * -(-down // LEARN_PANELS[0])
    sums = tasks * math.prod(LEARN_PANELS) * PANEL**2 if blocks > 1 else 0
    return 36 * ((across + down) * (block | 1) * PANEL + sums)


def winograd_weight_gradient_(
    weight: Tensor,  # (K, C, 3, 3)
    scratch: Tensor,
    x: Tensor,  # (N, H, W, C)
    grad: Tensor,  # (N, rows, columns, K)
    padding: int,
) -> None:
    """weight <- the gradient of a convolution of stride 1 by its weights."""
    images, grads = x.permute(0, 3, 1, 2), grad.permute(0, 3, 1, 2)
    weight.copy_(conv2d_weight(images, weight.shape, grads, padding=padding))  # type: ignore[no-untyped-call]
