"""Every op in a few lines of torch: its definition, its oracle, and what serves without a kernel.

The arithmetic is csrc/math.h's, so that linf agrees with the kernels bit for bit. Data in float64
is computed in float64, all other in float32: the compute dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which data of `dtype` is computed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def turn(v: Tensor, by: Tensor) -> Tensor:
    """v with its sign turned where `by` is negative, -0 included: a radius of 0 has sides too."""
    return torch.where(torch.signbit(by), -v, v)


def next_against(v: Tensor, origin: Tensor) -> Tensor:
    """v's neighbour in its own dtype: below where origin > 0, above where origin < 0."""
    bits = v.view(_BITS[v.element_size()])
    return torch.where(turn(v.to(origin.dtype), origin) > 0, bits - 1, bits + 1).view(v.dtype)


def add_towards(a: Tensor, b: Tensor) -> Tensor:
    """a + b rounded towards a, so that |result - a| <= |b| exactly (Knuth's TwoSum)."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    return torch.where(turn(error, b) < 0, next_against(total, b), total)


def clamp(v: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """torch.clamp, with the same bits for zeros on every backend."""
    v = torch.where(v < lower, lower, v)
    return torch.where(v > upper, upper, v)


def project_linf(
    v: Tensor, x: Tensor, radius: Tensor, lower: Tensor, upper: Tensor, dtype: torch.dtype
) -> Tensor:
    """The point of `dtype` nearest to v in {|. - x| <= radius} and the box."""
    most = torch.finfo(x.dtype).max  # a sum beyond the numbers is rounded towards x too
    finite = torch.isfinite(x) & torch.isfinite(radius)
    low, high = add_towards(x, -radius.expand_as(x)), add_towards(x, radius.expand_as(x))
    low = torch.where(finite, low.clamp(min=-most), low)
    high = torch.where(finite, high.clamp(max=most), high)
    v = clamp(clamp(v, low, high), lower, upper)
    nearest = v.to(dtype)
    value = nearest.to(v.dtype)
    beyond = (value > clamp(high, lower, upper)) | (value < clamp(low, lower, upper))
    return torch.where(beyond, next_against(nearest, value - v), nearest)


def place_towards(v: Tensor, x: Tensor, lower: Tensor, upper: Tensor, dtype: torch.dtype) -> Tensor:
    """v, clamped to the box and rounded towards x."""
    v = clamp(v, lower, upper)
    nearest = v.to(dtype)
    value = nearest.to(v.dtype)
    rounding = value - v  # x may lie beyond the box by its own: the box is not left towards it
    beyond = (turn(rounding, v - x) > 0) | (value > upper) | (value < lower)
    return torch.where(beyond, next_against(nearest, rounding), nearest)


def rows(values: Tensor, like: Tensor) -> Tensor:
    """() or (N,) to what broadcasts over the samples of `like`."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def box(bounds: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """The lower and upper bounds, () or (C, 1, ...), infinite where there is no box."""
    if bounds is None:  # filled on the device: a copy to it would wait for it
        return like.new_full((), -math.inf), like.new_full((), math.inf)
    lower, upper = bounds.reshape(2, -1, *[1] * (like.dim() - 2)) if bounds.dim() == 2 else bounds
    return lower, upper


def slack(x_adv: Tensor) -> float:
    """Relative room that l2 and l1 keep below the radius: rounding of the elements, and of sums."""
    rounding = 2.0**-53 if x_adv.dtype == torch.float64 else 2.0**-24
    return 16 * rounding + x_adv[0].numel() * 2.0**-53


def step_linf_(
    x_adv: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, radius: Tensor,
    bounds: Tensor | None, steepest: bool,
) -> None:  # fmt: skip
    """x_adv <- the nearest point to x_adv + step_size * sign(grad) in the ball and the box."""
    origin, g, v = (t.to(compute_dtype(x.dtype)) for t in (x, grad, x_adv))
    v = v + rows(step_size, x) * (torch.sign(g) if steepest else g)
    x_adv.copy_(project_linf(v, origin, rows(radius, x), *box(bounds, origin), x_adv.dtype))


def step_l2_(
    x_adv: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, radius: Tensor,
    bounds: Tensor | None, steepest: bool,
) -> None:  # fmt: skip
    """x_adv <- x + min(1, radius / ||v||) v, v = x_adv - x + step_size * grad / ||grad||."""
    origin, g, point = (t.to(compute_dtype(x.dtype)) for t in (x, grad, x_adv))
    unit = unit_of(g, steepest)
    g = g / rows(unit, g)
    length = norm(g, 2)
    steps = step_size / length if steepest else step_size.double() * unit + 0 * length
    step = torch.where(length > 0, steps, 0) if steepest else steps
    most = torch.finfo(g.dtype).max  # no stride, no square of it, no scale back leaves the numbers
    longest = 1e150 if g.dtype == torch.float64 else most * 2.0**-40
    step = torch.where(length > 0, step.minimum(longest / length), step).clamp(max=most)
    stride = rows(step.to(g.dtype), x) * g
    v, room = point - origin + stride, slack(x_adv) if len(x_adv) else 0.0
    outside = norm(v, 2) > radius * (1 - room)
    scale = torch.where(outside, radius * (1 - 2 * room) / norm(v, 2), 1).to(g.dtype)
    moved = add_towards(origin, rows(scale, x) * v)
    moved = torch.where((stride == 0) & ~rows(outside, x), point, moved)
    x_adv.copy_(place_towards(moved, origin, *box(bounds, origin), x_adv.dtype))


def step_l1_(
    x_adv: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, radius: Tensor,
    bounds: Tensor | None, steepest: bool, top: float,
) -> None:  # fmt: skip
    """x_adv <- the nearest point to v in ball and box, v = x_adv + step_size * slide(grad)."""
    origin, g, point = (t.to(compute_dtype(x.dtype)) for t in (x, grad, x_adv))
    lower, upper = box(bounds, origin)
    stride = rows(step_size, x) * (slide(g, top) if steepest else g)
    u, room = point - origin + stride, slack(x_adv) if len(x_adv) else 0.0
    cap = torch.where(u > 0, upper - origin, origin - lower).clamp(min=0)
    target = radius.double() * (1 - 2 * room)
    magnitude = u.abs().clamp(max=torch.finfo(g.dtype).max)
    inside = norm(torch.minimum(magnitude, cap), 1) <= radius * (1 - room)
    exact = torch.where(inside, 0, l1_threshold(magnitude, cap, target))
    threshold = exact.to(g.dtype)  # rounded up, or more than the radius would be left
    above = torch.nextafter(threshold, torch.full_like(threshold, math.inf))
    threshold = torch.where(threshold.double() < exact, above, threshold)
    w = turn(clamp(magnitude - rows(threshold, x), torch.zeros_like(cap), cap), u)
    moved = add_towards(origin, w)
    moved = torch.where((stride == 0) & rows(inside, x), point, moved)
    x_adv.copy_(place_towards(moved, origin, lower, upper, x_adv.dtype))


def flat(v: Tensor) -> Tensor:
    """(N, *shape) to (N, size); where a sample is a number, (N, 1)."""
    return v.flatten(1) if v.dim() > 1 else v[:, None]


def norm(v: Tensor, order: float) -> Tensor:
    """(N, *shape) to (N,): the l_order norm of each sample, in float64."""
    result: Tensor = torch.linalg.vector_norm(flat(v.double()), order, dim=1)
    return result


def unit_of(grad: Tensor, steepest: bool) -> Tensor:
    """(N,): 1, or the largest |grad| where its l2 norm's squares, or a step over it, leave the
    numbers: a gradient of float64 of 1e-170 has a direction too."""
    least, most = (1e-150, 1e150) if grad.dtype == torch.float64 else (1e-30, math.inf)
    if not grad.numel():
        return grad.new_ones(len(grad))
    length, largest = norm(grad, 2), flat(grad.abs()).amax(1)
    beyond = (length >= most) | (steepest & (length <= least))
    return torch.where(beyond & (largest > 0) & torch.isfinite(largest), largest, 1)


def slide(grad: Tensor, top: float) -> Tensor:
    """sign(grad) / m on the m entries of largest |grad|, a share `top` of them, ties included."""
    size = flat(grad).abs()
    k = min(max(math.floor(top * size.shape[1] + 0.5), 1), size.shape[1])
    smallest = size.topk(k, dim=1).values[:, -1:]
    moves = (size >= smallest) & (size != 0)
    share = moves.to(grad.dtype) / moves.sum(1, keepdim=True).clamp(min=1)
    return torch.sign(grad) * share.view_as(grad)


def l1_threshold(magnitude: Tensor, cap: Tensor, radius: Tensor) -> Tensor:
    """t >= 0 with sum(min(max(magnitude - t, 0), cap)) = radius, by bisection, (N,) in float64."""
    m, c = flat(magnitude.double()), flat(cap.double())
    lower, upper = torch.zeros_like(radius.expand(len(m))), m.sum(1)
    for _ in range(100):
        middle = (lower + upper) / 2
        above = (m - middle[:, None]).clamp(min=0).minimum(c).sum(1) > radius
        lower, upper = torch.where(above, middle, lower), torch.where(above, upper, middle)
    return upper


def universal_(
    step_: object, delta: Tensor, velocity: Tensor | None, grads: Tensor, weights: Tensor | None,
    step_size: Tensor, radius: Tensor, momentum: float, signs: bool, *rule: object,
) -> None:  # fmt: skip
    """delta <- the step of `step_` (no box) along the sum over the batch of weights * grads."""
    dtype = compute_dtype(grads.dtype)
    g = (torch.sign(grads) if signs else grads).double()
    if weights is not None:
        w = rows(weights, g)
        g = torch.where(w == 0, 0, w * g)
    direction = g.sum(0).to(dtype)
    if velocity is not None:
        total = direction.abs().double().sum()
        velocity.mul_(momentum).add_(torch.where(total > 0, direction / total, 0).view_as(velocity))
        direction = velocity
    one, zeros = delta.view(1, *grads.shape[1:]), torch.zeros_like(grads[:1])
    if not len(grads):
        zeros = delta.new_zeros(one.shape)
    assert callable(step_)
    step_(one, direction.view_as(one), zeros, step_size, radius, None, *rule)


def digest(x: Tensor) -> Tensor:
    """(N,) int64: the sum mod 2^64 of a hash of (bits, index) over each sample, in memory order."""
    unsigned = (1 << (8 * x.element_size())) - 1 if x.element_size() < 8 else -1
    flat = x.as_strided((len(x), x[0].numel() if len(x) else 0), (x.stride(0), 1))
    index = torch.arange(1, flat.shape[1] + 1, device=x.device)
    z = (flat.view(_BITS[x.element_size()]).long() & unsigned) + index * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return (z ^ _shift(z, 31)).sum(1)


def uniform(x: Tensor, seed: int, offset: int, stream: int) -> Tensor:
    """U[0, 1) shaped like x: Philox4x32-10 by (seed, offset + sample, stream, element)."""
    dtype = compute_dtype(x.dtype)
    size = x[0].numel() if len(x) else 0
    each = 2 if dtype == torch.float64 else 4  # elements a block of four words
    block = torch.arange(-(-size // each), device=x.device).expand(len(x), -1)
    sample = torch.arange(offset, offset + len(x), device=x.device)[:, None].expand_as(block)
    words = _philox(block, torch.full_like(block, stream), sample, seed)
    if dtype == torch.float64:
        unit = ((words[1] << 21) | (words[0] >> 11), (words[3] << 21) | (words[2] >> 11))
        parts = [part.double() * 2.0**-53 for part in unit]
    else:
        parts = [(word >> 8).float() * 2.0**-24 for word in words]
    return torch.stack(parts, -1).flatten(1)[:, :size].reshape(x.shape)


def _philox(block: Tensor, stream: Tensor, sample: Tensor, seed: int) -> tuple[Tensor, ...]:
    low = 0xFFFFFFFF
    c0, c1, c2, c3 = block, stream & low, sample & low, (sample >> 32) & low
    k0, k1 = seed & low, (seed >> 32) & low
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # int64 wraps as uint64 does
        c0, c2 = ((p1 >> 32) & low) ^ c1 ^ k0, ((p0 >> 32) & low) ^ c3 ^ k1
        c1, c3 = p1 & low, p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return c0, c1, c2, c3


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _shift(z: Tensor, by: int) -> Tensor:
    return (z >> by) & ((1 << (64 - by)) - 1)
