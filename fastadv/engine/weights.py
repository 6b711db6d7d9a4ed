"""What is computed from weights alone, once, and again when a weight has changed.

An in-place write raises a tensor's _version; a fused optimizer, a write through `.data` and one
through NumPy do not. So each forward, but of our own attacks only the first, reads the weights
behind every kept value and compares a fingerprint of their bytes: one pass at memory's speed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor

from fastadv.engine.calls import linear_weights, winograd_weights
from fastadv.engine.reference_direct import depthwise_weights, direct_weights
from fastadv.engine.spread import spread_bias, spread_weights

State = tuple[int, int, tuple[int, ...], int]  # data_ptr, _version, shape, fingerprint


def state_of(weight: Tensor) -> State:
    dense = weight if weight.is_contiguous() else weight.contiguous()
    version = 0 if weight.is_inference() else weight._version
    mark = int(torch.ops.fastadv.fingerprint(dense))
    return weight.data_ptr(), version, tuple(weight.shape), mark


def norm_scale(gamma: Tensor | None, variance: Tensor, eps: float) -> Tensor:
    """gamma / sqrt(variance + eps): what a batch norm in eval mode multiplies by."""
    scale = torch.rsqrt(variance.double() + eps)
    return (scale if gamma is None else scale * gamma).to(variance.dtype)


def norm_shift(bias: Tensor | None, scale: Tensor, mean: Tensor, beta: Tensor | None) -> Tensor:
    """What it adds, to the output of a convolution with `bias`."""
    shift = (-mean if bias is None else bias - mean) * scale
    return shift if beta is None else shift + beta


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """(K, C, ...) times (K,), channels last."""
    result = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    return result.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else result


FUNCTIONS: tuple[Callable[..., Tensor], ...] = (
    norm_scale, norm_shift, scaled, winograd_weights, direct_weights, linear_weights,
    depthwise_weights, spread_weights, spread_bias,
)  # fmt: skip


@dataclass
class Weights:
    """The kept values of one model, shared by all its graphs."""

    states: dict[str, tuple[State, int]] = field(default_factory=dict)  # by name; and a count
    values: dict[Hashable, tuple[tuple[int, ...], Tensor]] = field(default_factory=dict)
    held: dict[object, list[Tensor]] | None = None  # while no weight changes: values by graph
    period: int = 0  # how often that began
    lock: Lock = field(default_factory=Lock)

    def hold(self) -> None:
        """From now on no weight changes, until `held` is None again or this is called once more."""
        self.held, self.period = {}, self.period + 1

    def count(self, name: str, weight: Tensor) -> int:
        """How often the weight `name` has changed."""
        state = state_of(weight)
        before, count = self.states.get(name, (None, 0))
        if state != before:
            count += 1
            self.states[name] = (state, count)
        return count

    def value(
        self, key: Hashable, counts: tuple[int, ...], compute: Callable[[], Tensor]
    ) -> Tensor:
        """The value of `key` for weights that have changed `counts` times."""
        kept = self.values.get(key)
        if kept is None or kept[0] != counts:
            kept = (counts, compute())
            self.values[key] = kept
        return kept[1]

    @property
    def bytes(self) -> int:
        return sum(value.numel() * value.element_size() for _, value in self.values.values())
