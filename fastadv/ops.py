"""The ops: schemas, fakes, checks. The only door to the kernels.

torch.ops.fastadv.* are the ops themselves: tensors in, checked for memory safety alone. The
functions below are what Python calls: they check, convert and explain, then call the op. Each op is
declared once and defined by reference.py on any device; csrc/register.cpp serves it on the CPU, and
fastadv.kernels (Triton) or csrc/cuda on CUDA: backend.py chooses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from fastadv import _checks, _fakes, reference
from fastadv.backend import Backend, load
from fastadv.deferred import Deferred
from fastadv.reference_head import head as reference_head

_STEP = (
    "(Tensor(a!) x_adv, Tensor grad, Tensor x, Tensor step_size, Tensor radius, Tensor? bounds, "
    "bool steepest{}) -> ()"
)
_UNIVERSAL = (
    "(Tensor(a!) delta, Tensor(b!)? velocity, Tensor grads, Tensor? weights, Tensor step_size, "
    "Tensor radius, float momentum, bool signs, bool steepest{}) -> ()"
)


_library: Any = torch.library.Library("fastadv", "DEF")  # type: ignore[no-untyped-call]
_backend = load()
_deferred = Deferred()


def _define(
    name: str, schema: str, defined_by: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    _library.define(name + schema)
    if _backend.cuda == "triton":
        _deferred.serve(_library, name, defined_by)
    _library.impl(name, defined_by, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastadv::{name}", fake, lib=_library)


for _norm, _more in (("linf", ""), ("l2", ""), ("l1", ", float top")):
    _step = getattr(reference, f"step_{_norm}_")
    _define(f"step_{_norm}_", _STEP.format(_more), _step, _fakes.no_result)
    _define(
        f"universal_{_norm}_",
        _UNIVERSAL.format(_more),
        partial(reference.universal_, _step),
        _fakes.no_result,
    )
_define(
    "head",
    "(Tensor logits, Tensor y, Tensor? target, int head, bool targeted)"
    " -> (Tensor, Tensor, Tensor)",
    reference_head,
    _fakes.head,
)
_define("digest", "(Tensor x) -> Tensor", reference.digest, _fakes.digest)
_define(
    "uniform",
    "(Tensor x, int seed, int offset, int stream) -> Tensor",
    reference.uniform,
    _fakes.uniform,
)


def backend() -> Backend:
    """What serves the ops: compiled kernels (and which instruction set), or the reference."""
    return _backend


class Ball(Protocol):
    """What a step needs to know of a ball: see balls.py."""

    @property
    def order(self) -> str: ...
    @property
    def radius(self) -> float: ...
    def bounds_for(self, x: Tensor) -> Tensor | None: ...


def per_sample(
    value: float | Tensor, x: Tensor, name: str, round_down: bool = False
) -> Tensor:  # () or (N,)
    """`value` as the kernels take it: () or (N,), compute dtype, x's device.

    `round_down` takes the float32 below a float64 value where it is not one itself, so that
    a radius of 8 / 255 holds for the number that was written.
    """
    dtype = reference.compute_dtype(x.dtype)
    if not isinstance(value, Tensor):
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"`{name}` must be a number or a tensor, got {type(value).__name__}")
        _checks.length(float(value), name)
        number = _number if type(x) is Tensor else _number.__wrapped__  # a fake one is not kept
        return number(float(value), dtype, x.device, round_down)
    if value.shape not in ((), (1,), (len(x),)):
        raise ValueError(
            f"`{name}` must be a number or ({len(x)},), one a sample, "
            f"got {_checks.text(value.shape)}"
        )
    return _rounded(value.detach(), dtype, x.device, round_down).contiguous()


@lru_cache(maxsize=1024)  # a loop's constants: 1 us in place of 20
def _number(value: float, dtype: torch.dtype, device: torch.device, round_down: bool) -> Tensor:
    with torch.inference_mode(False):  # kept for all calls: this one's mode must not stick
        number = torch.tensor(value, dtype=torch.float64, device="cpu")
        return _rounded(number, dtype, device, round_down)


def _rounded(value: Tensor, dtype: torch.dtype, device: torch.device, round_down: bool) -> Tensor:
    rounded = value.to(device, dtype)
    if not round_down or value.dtype != torch.float64 or dtype == torch.float64:
        return rounded
    below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    return torch.where(rounded.double() > value.to(device), below, rounded)


def _rule(ball: Ball, steepest: bool, top: float) -> tuple[bool | float, ...]:
    """The ops' last arguments."""
    if not hasattr(ball, "order"):
        raise TypeError(f"`ball` must be a ball, as in fa.Linf(8 / 255), got {ball!r}")
    if not 0 < top <= 1:
        raise ValueError(f"`top` must be in (0, 1], got {top}")
    return (steepest, top) if ball.order == "l1" else (steepest,)


def is_dense(x: Tensor) -> bool:
    """Whether the kernels take x as it stands in memory."""
    return (
        x.is_contiguous()
        or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
        or (x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d))
    )


def _in_format_of(x: Tensor, t: Tensor) -> Tensor:
    return t if t.stride() == x.stride() else torch.empty_like(x).copy_(t)


def step_(
    x_adv: Tensor,  # (N, *shape)
    grad: Tensor,  # (N, *shape)
    x: Tensor,  # (N, *shape)
    *,
    ball: Ball,
    step_size: float | Tensor,  # () or (N,)
    radius: float | Tensor | None = None,  # () or (N,); None: the ball's
    steepest: bool = True,
    top: float = 0.05,
) -> Tensor:
    """One ascent step in place: x_adv <- P(x_adv + step_size * direction(grad)).

    The direction is the ball's steepest ascent (linf: sign(grad); l2: grad / ||grad||; l1: the
    signs of the share `top` of largest |grad|, of l1 norm 1), or grad itself. P projects onto the
    ball of `radius` around x and the box `ball.bounds`; both hold exactly for the stored numbers.
    Where the gradient is zero nothing moves. Memory formats that differ from x_adv's cost a copy.

    Returns x_adv. Raises ValueError or TypeError, with x_adv unchanged, on any mismatch, and
    RuntimeError on the CPU where x_adv shares memory with x or grad. What only the values tell is
    not checked, since that would wait for the device: x must lie in the box, and sizes given as
    tensors must be numbers.
    """
    _checks.data(x_adv, "x_adv")
    _checks.mutable(x_adv, "x_adv")
    _checks.like(grad, "grad", x_adv, "x_adv")
    _checks.like(x, "x", x_adv, "x_adv")
    if x_adv is x or x_adv is grad:
        raise ValueError("`x_adv` is updated in place and must not be `x` or `grad`: call .clone()")
    rule = _rule(ball, steepest, top)
    bounds = ball.bounds_for(x_adv)
    step = per_sample(step_size, x_adv, "step_size")
    r = per_sample(ball.radius if radius is None else radius, x_adv, "radius", round_down=True)
    if x_adv.numel() == 0:
        return x_adv
    op = getattr(torch.ops.fastadv, f"step_{ball.order}_")
    point = x_adv if is_dense(x_adv) else x_adv.contiguous()
    op(point, _in_format_of(point, grad), _in_format_of(point, x), step, r, bounds, *rule)
    return x_adv if point is x_adv else x_adv.copy_(point)


def project_(
    x_adv: Tensor, x: Tensor, *, ball: Ball, radius: float | Tensor | None = None
) -> Tensor:
    """x_adv <- its projection onto the ball around x and the box, in place: a step of length 0."""
    return step_(x_adv, x, x, ball=ball, step_size=0.0, radius=radius, steepest=False)


def universal_(
    delta: Tensor,  # (*shape)
    grads: Tensor,  # (N, *shape)
    *,
    ball: Ball,
    step_size: float,
    weights: Tensor | None = None,  # (N,)
    velocity: Tensor | None = None,  # (*shape)
    momentum: float = 0.0,
    signs: bool = False,
    steepest: bool = True,
    top: float = 0.05,
) -> Tensor:
    """One universal ascent step in place: delta <- P(delta + step_size * direction(sum_i w_i g_i)).

    One pass over the gradients (`signs`: over their signs). A sample of weight 0 is left out.
    With a velocity (float64 for float64 gradients, else float32; updated in place) the direction
    is taken of momentum * velocity + g / ||g||_1 (1710.06081). P projects onto the ball, in which
    delta then lies exactly; the box belongs to x + delta, where delta is applied. The sum is over
    the batch: with steepest=False scale `step_size` or `weights` for a mean.

    Returns delta. Raises ValueError or TypeError, with delta unchanged, on any mismatch.
    """
    _check_universal(delta, grads, weights, velocity)
    rule = _rule(ball, steepest, top)
    step = per_sample(step_size, grads[:1], "step_size")
    radius = per_sample(ball.radius, grads[:1], "radius", round_down=True)
    if delta.numel() == 0 or len(grads) == 0:
        return delta
    op = getattr(torch.ops.fastadv, f"universal_{ball.order}_")
    point = delta.contiguous()
    weights = None if weights is None else weights.contiguous()
    op(point, velocity, grads.contiguous(), weights, step, radius, momentum, signs, *rule)
    return delta if point is delta else delta.copy_(point)


def _check_universal(
    delta: Tensor, grads: Tensor, weights: Tensor | None, velocity: Tensor | None
) -> None:
    _checks.data(grads, "grads")
    _checks.mutable(delta, "delta")
    if delta is velocity:
        raise ValueError("`delta` and `velocity` are updated in place and must not be one tensor")
    _checks.like(delta, "delta", grads.new_empty(grads.shape[1:]), "grads[0]")
    dtype = reference.compute_dtype(grads.dtype)
    if weights is not None:
        _checks.like(weights, "weights", grads.new_empty(len(grads), dtype=dtype), "len(grads)")
    if velocity is not None:
        _checks.like(velocity, "velocity", grads.new_empty(delta.shape, dtype=dtype), "delta")
        if not velocity.is_contiguous():
            raise ValueError("`velocity` is updated in place and must be contiguous")


def head(
    logits: Tensor, y: Tensor, target: Tensor | None, head: int, targeted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss (N,), its gradient like the logits (N, C), prediction): see reference_head.head.

    y and target as Objective.prepare gives them; `head` is an objective's number. Logits in other
    memory layouts cost a copy.
    """
    result: tuple[Tensor, Tensor, Tensor] = torch.ops.fastadv.head(
        logits.contiguous(), y, target, head, targeted
    )
    return result


def digest(x: Tensor) -> Tensor:
    """(N, *shape) to (N,) int64: a digest of each sample's bits, equal for equal samples.

    It is taken in the order of memory: compare digests of tensors of one memory format.
    """
    return torch.ops.fastadv.digest(_checks.data(x, "x") if is_dense(x) else x.contiguous())  # type: ignore[no-any-return]


def uniform(x: Tensor, seed: int, offset: int = 0, stream: int = 0) -> Tensor:
    """U[0, 1) shaped like x (N, *shape), in float64 for float64 and else float32.

    A function of (seed, offset + sample, stream, element) alone: the batch split, the memory
    format, the threads and the device do not matter.
    """
    return torch.ops.fastadv.uniform(_checks.data(x, "x"), seed, offset, stream)  # type: ignore[no-any-return]
