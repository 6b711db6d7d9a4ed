"""The heads on a tile of logits in registers: the gradient of the summed loss by them.

What they are, at every edge, stands in fastadv/reference_head.py. Classes are padded; of the loss
only whether it is a number is wanted.
"""

from __future__ import annotations

import triton
import triton.language as tl

CROSS_ENTROPY = tl.constexpr(0)
BINARY_CROSS_ENTROPY = tl.constexpr(1)
MARGIN = tl.constexpr(2)
DLR = tl.constexpr(3)
KL = tl.constexpr(4)


@triton.jit
def _largest(z, classes):
    """(its value, its class) of each row, (rows, 1): the first of equal ones; 2^30 if it is NaN."""
    value = tl.max(z, 1)[:, None]
    return value, tl.min(tl.where(z == value, classes, 1 << 30), 1)[:, None]


@triton.jit
def _at(z, classes, index):
    """(rows, 1): the logit of a class; 0 where there is none."""
    return tl.sum(tl.where(classes == index, z, 0.0), 1)[:, None]


@triton.jit
def _cross_entropy(z, classes, label):
    """p - onehot(y); the largest logit's 1 is kept out of the sums, so that a loss of 1e-20 has a
    gradient."""
    largest, top = _largest(z, classes)
    e = tl.exp(z - largest)
    rest = tl.sum(tl.where(classes == top, 0.0, e), 1)[:, None] + (largest - largest)
    total = 1 + rest
    at_label = tl.where(label == top, -rest, tl.exp(_at(z, classes, label) - largest) - total)
    return tl.where(classes == label, at_label, e) / total, rest


@triton.jit
def _margin(z, classes, label):
    """onehot(other) - onehot(y), other the largest but y."""
    other, index = _largest(tl.where(classes == label, -float("inf"), z), classes)
    grad = tl.where(classes == index, 1.0, 0.0) - tl.where(classes == label, 1.0, 0.0)
    return grad, other - _at(z, classes, label)


@triton.jit
def _dlr(z, classes, label, other, TARGETED: tl.constexpr):
    """Of (z_other - z_y) / spread, spread z_1st - z_3rd or z_1st - (z_3rd + z_4th) / 2."""
    v1, i1 = _largest(z, classes)
    rest = tl.where(classes == i1, -float("inf"), z)
    _, i2 = _largest(rest, classes)
    rest = tl.where(classes == i2, -float("inf"), rest)
    v3, i3 = _largest(rest, classes)
    if TARGETED:
        v4, i4 = _largest(tl.where(classes == i3, -float("inf"), rest), classes)
    else:
        v4, i4 = v3, i3
        other = tl.where(i1 == label, i2, i1)
    spread = v1 - (v3 + v4) * 0.5
    slope = 1 / tl.where(spread == 0, 1.0, spread)
    loss = (_at(z, classes, other) - _at(z, classes, label)) * slope
    pull = tl.where(spread == 0, 0.0, loss * slope)
    half = pull * 0.5
    grad = tl.where(classes == other, slope, 0.0) - tl.where(classes == label, slope, 0.0)
    grad += tl.where(classes == i3, half, 0.0) + tl.where(classes == i4, half, 0.0)
    return grad - tl.where(classes == i1, pull, 0.0), loss


@triton.jit
def _by_labels(z, classes, y, rows, live, CLASSES: tl.constexpr, HEAD: tl.constexpr):
    """The heads that have a number for each class: (gradient, NaN where the loss is)."""
    real = live[:, None] & (classes < CLASSES)
    w = tl.load(y + rows[:, None] * CLASSES + classes, real, other=0.0)
    if HEAD == BINARY_CROSS_ENTROPY:
        valid = (w == 0) | (w == 1)
        s = tl.where(w == 1, -z, z)
        e = tl.exp(-tl.abs(s))
        share = tl.where(s > 0, 1.0, e) / (1 + e)
        grad = tl.where(valid & real, tl.where(w == 1, -share, share), 0.0)
        lost = tl.where(real, tl.where(valid, s - s, float("nan")), 0.0)
        lost = tl.where(real & valid & (s == s), 0.0, lost)  # infinite logits have a loss
        return grad, tl.sum(lost, 1)[:, None]
    else:
        largest, _ = _largest(z, classes)
        e = tl.exp(z - largest)
        total = tl.sum(e, 1)[:, None]
        mass = tl.sum(w, 1)[:, None]
        lost = tl.where(w == 0, 0.0, w * (tl.log(w) - (z - largest)))
        return e * (mass / total) - w, tl.sum(lost, 1)[:, None] + mass * tl.log(total)


@triton.jit
def head_gradient(
    z, y, target, rows, live, first, CLASSES: tl.constexpr, HEAD: tl.constexpr,
    TARGETED: tl.constexpr,
):  # fmt: skip
    """(gradient by the logits, (rows,) whether the loss, or on the first call a logit, is none)."""
    classes = tl.arange(0, z.shape[1])[None, :]
    infinite = tl.where((classes < CLASSES) & ((z != z) | (z == float("inf"))), 1, 0)
    z = tl.where(classes < CLASSES, z, -float("inf"))
    valid = live[:, None]
    if (HEAD == BINARY_CROSS_ENTROPY) | (HEAD == KL):
        grad, loss = _by_labels(z, classes, y, rows, live, CLASSES, HEAD)
    else:
        label = tl.load(y + rows, live, other=0)[:, None]
        valid = (label >= 0) & (label < CLASSES)
        if HEAD == CROSS_ENTROPY:
            grad, loss = _cross_entropy(z, classes, label)
        elif HEAD == MARGIN:
            grad, loss = _margin(z, classes, label)
        else:
            other = label
            if TARGETED:
                other = tl.load(target + rows, live, other=0)[:, None]
                valid &= (other >= 0) & (other < CLASSES)
            grad, loss = _dlr(z, classes, label, other, TARGETED)
        grad = tl.where(valid, grad, 0.0)
    if TARGETED and HEAD != DLR:
        grad = -grad
    nan = tl.max(tl.where(z != z, 1, 0), 1) > 0
    wrong = nan | (first & (tl.max(infinite, 1) > 0))
    return grad, wrong | (tl.max(tl.where(valid & (loss == loss), 0, 1), 1) > 0)
