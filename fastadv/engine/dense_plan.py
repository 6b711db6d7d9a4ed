"""Which attacks on a compiled model take all their steps in one call, and why the others do not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fastadv import ops
from fastadv.engine import dense, inductor
from fastadv.engine.weights import Weights

if TYPE_CHECKING:
    from fastadv.attack import Attack
    from fastadv.problem import Problem

PRECISIONS = ("float32", "bfloat16")
Climb = Callable[[Tensor], Tensor]
Read = Callable[[Tensor], dense.Layers | str]


# Products of a forward below which plain torch is as fast: the way here takes some 200 us.
_TINY = 1 << 26


class Plans:
    """The plans of one model; `notes` says what became of the last forward and the last attack."""

    def __init__(self, model: nn.Module, precision: str, weights: Weights) -> None:
        self.model = model
        self.precision = precision
        self.bfloat16 = precision == "bfloat16" and multiplies_bfloat16()
        self.against = dense.only_linears(model)
        self.notes: list[str] = []
        self.found = False  # a dense stack, when last looked
        self._size = sum(p.numel() for p in model.parameters())
        self._weights = weights

    def attack(self, attack: Attack, problem: Problem, read_graph: Read) -> Climb | None:
        """x_adv to the attack's last iterate; None: it is to be taken step by step."""
        if self.against is not None or (layers := self._layers(problem.x, read_graph)) is None:
            return None
        bfloat16, why = self.bfloat16, dense.why_not(attack, problem)
        on_device = inductor.serves(problem.x)
        if not why and on_device:
            bfloat16 = self.precision == "bfloat16"
            why = dense.why_not_on_device(layers, problem, bfloat16)
        if why:
            way = "was not taken in one launch" if on_device else "went step by step"
            self.notes.append(f"the last attack {way}: {why}")
            return None
        stack = dense.packed(layers, self._weights, bfloat16)
        return partial(dense.climb, stack, attack, problem)

    def refuses(self, x: Tensor) -> bool:
        """Whether `forward` gives None, as far as that is told at once."""
        if self.against is not None or self.precision != "float32" or not x.dim():
            return self.against is not None
        return x.size(0) * self._size < _TINY

    def forward(self, x: Tensor, read_graph: Read) -> Tensor | None:
        """The logits, differentiable by x; None: they are plain torch's."""
        if self.refuses(x) or dense.why_not_data(x) or not x.numel():
            return None
        if (layers := self._layers(x, read_graph)) is None:
            return None
        return dense.logits_of(x, dense.packed(layers, self._weights, self.bfloat16))

    def _layers(self, x: Tensor, read_graph: Read) -> dense.Layers | None:
        layers = dense.read_modules(self.model, x)
        on_device = inductor.serves(x)
        if isinstance(layers, str) and (x.device.type == "cpu" or on_device):
            layers = read_graph(x)
        if isinstance(layers, str):
            self.found = False
            slower = f"attacks step by step: it is no dense stack, {layers}"
            self.notes = [] if on_device else [slower]
            return None
        self.found = True
        if on_device:
            products = "bfloat16" if self.precision == "bfloat16" else "TF32"
            self.notes = [f"{_STACK} launch, {products} products".format(dense.describe(layers))]
            return layers
        products = "bfloat16" if self.bfloat16 else "float32"
        self.notes = [f"{_STACK} call, {products} products".format(dense.describe(layers))]
        if self.precision == "float32":
            self.notes.append(
                f"through autograd: batches of {-(-_TINY // self._size)} and more on the same "
                "kernels, smaller ones as plain torch, which is as fast there"
            )
        if self.precision != products:
            self.notes.append(_NO_BFLOAT16)
        return layers


def require_precision(precision: str, why_not: str | None) -> None:
    """Raises ValueError for a precision that the model cannot have, and warns where the processor
    has no products for it. why_not: of all that is served."""
    if precision not in PRECISIONS:
        raise ValueError(f"`precision` must be one of {PRECISIONS}, got {precision!r}")
    if precision == "float32":
        return
    if why_not is not None:
        raise ValueError(
            f"`precision` must be 'float32' for this model, got {precision!r}: {why_not}"
        )
    if not multiplies_bfloat16():
        warnings.warn(_NO_BFLOAT16, stacklevel=3)


def multiplies_bfloat16() -> bool:
    """Whether the kernels in use multiply bfloat16 numbers."""
    if not ops.backend().is_native:
        return False
    from fastadv import _native

    return bool(_native.multiplies_bfloat16())


_STACK = "dense stack {}: plain attacks take all steps in one"
_NO_BFLOAT16 = (
    "precision='bfloat16' is served in float32: the kernels in use have no bfloat16 products "
    "(they need AVX-512 BF16)"
)
