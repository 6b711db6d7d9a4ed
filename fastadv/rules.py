"""Step rules: how an attack turns gradients into steps. Frozen values without tensors.

A rule starts a state (a dict of tensors, one row a sample, so that finished samples can leave the
batch) and takes steps in place. What differs from step to step and is in neither are its numbers:
a loop gives them as they are, a captured step reads them from a tensor. Whatever a rule needs of
the ball goes through ops.step_.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from fastadv import ops
from fastadv.balls import Ball
from fastadv.reference import compute_dtype, flat, rows

State = dict[str, Tensor]
Numbers = Sequence[float | Tensor]  # tensors are ()
StepSize = float | tuple[float, ...]


@dataclass(frozen=True)
class Rule:
    """A step of `step_size` (one number, or one a step: a schedule) in the units of x."""

    step_size: StepSize
    stateless: ClassVar[bool] = False  # claimed by rules whose step follows from x_adv alone

    def __post_init__(self) -> None:
        sizes = self.step_size if isinstance(self.step_size, (tuple, list)) else (self.step_size,)
        if isinstance(self.step_size, list):
            object.__setattr__(self, "step_size", tuple(self.step_size))
        if not sizes:
            raise ValueError("`step_size` must be a number, or one a step, got none")
        for size in sizes:
            _require(size, "step_size", "finite and at least 0", lambda v: 0 <= v < math.inf)

    def size(self, k: int) -> float:
        """The step size of step k, from 0; a schedule's last one is kept."""
        if isinstance(self.step_size, tuple):
            return self.step_size[min(k, len(self.step_size) - 1)]
        return self.step_size

    def numbers(self, k: int) -> tuple[float, ...]:
        """What `step_` takes of step k: its size first, always as many."""
        return (self.size(k),)

    def numbers_for(self, x: Tensor, steps: int) -> Callable[[int], Numbers]:
        """k to the numbers of step k. Where they differ they go to x's device all at once: one by
        one each would wait for it."""
        each = [self.numbers(k) for k in range(steps)]
        if len(set(each)) < 2:
            return self.numbers
        table = torch.tensor(each, dtype=torch.float64).to(x.device, compute_dtype(x.dtype))
        return lambda k: table[k].unbind()

    @property
    def is_memoryless(self) -> bool:
        """Whether all steps are one function of x_adv: an iterate met twice then makes a cycle."""
        sizes = self.step_size if isinstance(self.step_size, tuple) else (self.step_size,)
        return self.stateless and len(set(sizes)) == 1

    def start(self, x: Tensor) -> State:
        """The state before the first step."""
        return {}

    def step_(
        self, state: State, numbers: Numbers, x_adv: Tensor, grad: Tensor, x: Tensor, ball: Ball,
        radius: Tensor,
    ) -> None:  # fmt: skip
        """Updates x_adv and the state in place; `numbers` are the step's."""
        raise NotImplementedError


@dataclass(frozen=True)
class Steepest(Rule):
    """The ball's steepest ascent: sign(grad) in linf, grad / ||grad|| in l2, and in l1 the signs of
    the share `top` of largest |grad|, of l1 norm 1 (SLIDE, Tramer and Boneh 1904.13000). They took
    .01 on 3072 coordinates; with few coordinates more must move."""

    top: float = 0.05
    stateless: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.top, "top", "in (0, 1]", lambda v: 0 < v <= 1)

    def step_(
        self, state: State, numbers: Numbers, x_adv: Tensor, grad: Tensor, x: Tensor, ball: Ball,
        radius: Tensor,
    ) -> None:  # fmt: skip
        ops.step_(x_adv, grad, x, ball=ball, step_size=numbers[0], radius=radius, top=self.top)


@dataclass(frozen=True)
class Gradient(Rule):
    """The raw gradient of the sample's own loss: x_adv + step_size * grad."""

    stateless: ClassVar[bool] = True

    def step_(
        self, state: State, numbers: Numbers, x_adv: Tensor, grad: Tensor, x: Tensor, ball: Ball,
        radius: Tensor,
    ) -> None:  # fmt: skip
        ops.step_(x_adv, grad, x, ball=ball, step_size=numbers[0], radius=radius, steepest=False)


@dataclass(frozen=True)
class Momentum(Rule):
    """MI-FGSM (Dong et al. 1710.06081, algorithm 1): the steepest step of a decaying sum of
    gradients, each divided by its l1 norm."""

    decay: float = 1.0
    top: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.top, "top", "in (0, 1]", lambda v: 0 < v <= 1)
        _require(self.decay, "decay", "finite and at least 0", lambda v: 0 <= v < math.inf)

    def start(self, x: Tensor) -> State:
        return {"velocity": torch.zeros_like(x, dtype=compute_dtype(x.dtype))}

    def step_(
        self, state: State, numbers: Numbers, x_adv: Tensor, grad: Tensor, x: Tensor, ball: Ball,
        radius: Tensor,
    ) -> None:  # fmt: skip
        # The mean in place of the sum of |grad|: the same direction, and no float16 underflows.
        velocity = state["velocity"]
        g = grad.to(velocity.dtype)
        mean = flat(g.abs()).mean(1)
        # A subnormal mean has no finite inverse: inf * 0 would be NaN for good.
        scale = torch.where(mean > 0, 1 / mean, 0).clamp(max=torch.finfo(g.dtype).max)
        velocity.mul_(self.decay).addcmul_(g, rows(scale, g))
        direction = velocity if velocity.dtype == x.dtype else _in_half(velocity, x.dtype)
        ops.step_(x_adv, direction, x, ball=ball, step_size=numbers[0], radius=radius, top=self.top)


@dataclass(frozen=True)
class Adam(Rule):
    """Adam's direction (Kingma and Ba 1412.6980), ascending: m / (sqrt(v) + epsilon)."""

    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise ValueError(f"`betas` must be two numbers, got {self.betas!r}")
        object.__setattr__(self, "betas", tuple(self.betas))
        for beta in self.betas:
            _require(beta, "betas", "in [0, 1)", lambda v: 0 <= v < 1)
        _require(self.epsilon, "epsilon", "finite and positive", lambda v: 0 < v < math.inf)

    def numbers(self, k: int) -> tuple[float, ...]:
        return self.size(k), *(1 - beta ** (k + 1) for beta in self.betas)

    def start(self, x: Tensor) -> State:
        zeros = torch.zeros_like(x, dtype=compute_dtype(x.dtype))
        return {"mean": zeros, "square": zeros.clone()}

    def step_(
        self, state: State, numbers: Numbers, x_adv: Tensor, grad: Tensor, x: Tensor, ball: Ball,
        radius: Tensor,
    ) -> None:  # fmt: skip
        mean, square = state["mean"], state["square"]
        g = grad.to(mean.dtype)
        mean.lerp_(g, 1 - self.betas[0])
        square.mul_(self.betas[1]).addcmul_(g, g, value=1 - self.betas[1])
        # As tensors: CUDA divides by a Python number through its inverse, with other bits.
        size, left, left_square = (ops.per_sample(n, x, "step_size") for n in numbers)
        unbiased = (square / left_square).sqrt_()
        direction = mean / left / (unbiased + self.epsilon)
        ops.step_(
            x_adv, direction.to(x.dtype), x, ball=ball, step_size=size, radius=radius,
            steepest=False,
        )  # fmt: skip


@dataclass(frozen=True)
class Auto:
    """APGD's own step sizes (Croce and Hein 2003.01690): from 2 * radius, halved for a sample
    whenever fewer than the share `rho` of the steps since the last check raised its loss."""

    rho: float = 0.75

    def __post_init__(self) -> None:
        _require(self.rho, "rho", "in [0, 1]", lambda v: 0 <= v <= 1)


def _require(value: object, name: str, expected: str, holds: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {type(value).__name__}")
    if not holds(float(value)):
        raise ValueError(f"`{name}` must be {expected}, got {value}")


def _in_half(direction: Tensor, dtype: torch.dtype) -> Tensor:
    """The direction in half precision, each sample scaled to 2^15: float16 ends at 65504."""
    largest = flat(direction.abs()).amax(1)
    scale = torch.where(largest > 0, 2.0**15 / largest, 0).clamp(max=torch.finfo(torch.float32).max)
    return (direction * rows(scale, direction)).to(dtype)
