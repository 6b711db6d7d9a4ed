"""Plans: a captured gradient's kernels in two calls, one forward and one backward.

Layer by layer (halves.py) Python takes 20 us a kernel: on LeNet, one sample, more than the kernels.
So what a forward and its backward do is noted once, in memory that is the plan's own, and from then
on csrc/cpu/plan.cpp does it again: a gradient of one sample is 1.5 times as fast, of 64 it is 1.04
times, of 32 on ResNet-18 1.03 times. Nothing is allocated but what is handed out and, where ATen's
ops stand between the kernels, the results of those that are not elementwise. Packed weights that
have moved are looked up once an attack. An attack's steps need not leave C++ either: loop.py.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastadv.engine.formats import is_gray, is_image
from fastadv.engine.noting import Calls, Move
from fastadv.engine.pool import Pool, pool
from fastadv.model import Pull
from fastadv.ops import backend

if TYPE_CHECKING:
    from fastadv.engine.halves import Halves

Key = tuple[int, int]

# Bytes of all plans of a gradient. One takes what layer by layer takes of the pool, once more: 48
# MiB for ResNet-18, 32 samples. Beyond this limit a step takes seconds, of which Python has 2 ms.
_MOST = 512 << 20


class Plan:
    """One forward, and one backward of its tangents, in memory of their own."""

    def __init__(self, halves: Halves, module: nn.Module, x: Tensor) -> None:
        self.halves, self.module = halves, module
        self.arena = Pool(0, sys.maxsize)  # it gives back nothing, to which a call may point
        self.x = _rows_like(x, self.arena)
        self.forward, self.backward = Calls(), Calls()
        self.tangents: Tensor | None = None
        self.stale = False  # is not to be used again
        self.bytes = 0  # of its memory, once it is noted
        self.period = halves.forward.weights.period
        given = halves.inputs_of(module, self.x)
        self.kept: list[Tensor] | None = halves.forward.kept(given)  # while the plan is lent
        self.places = _places(given, self.kept)
        self.x.copy_(x)
        with self.forward.noting(self.arena) as note:
            outputs = halves.forward.module(*given, *self.kept)
        self.outputs: Sequence[Any] | None = outputs  # until the backward is noted
        self.logits: Tensor = outputs[0]
        self.refused = note.refused
        self.bytes = self.arena.bytes + self.forward.bytes

    def ascend(self, x: Tensor) -> Tensor:
        """The logits at x."""
        self.x.copy_(x)
        self.forward.run()
        return self.logits.clone()

    def pull(self, contiguous: bool, tangents: Tensor) -> Tensor:
        """The gradients at the x that was given last, which was contiguous or not."""
        self.halves.require_rows(len(tangents))
        if self.outputs is not None:
            grad = self._note_backward(self.outputs, tangents)
        elif self.tangents is None or len(self.tangents) != len(tangents):
            self.stale = True
            grad = self.halves.by_layer(self.module, self.x)[1](tangents)
        else:
            self.tangents.copy_(tangents)
            self.backward.run()
            grad = self.grad
        shape = tuple(grad.shape)
        if contiguous:
            return pool.empty(shape, grad.dtype).copy_(grad)
        flat = pool.empty((grad.numel(),), grad.dtype)
        return flat.as_strided(shape, grad.stride()).copy_(grad)

    def _note_backward(self, outputs: Sequence[Any], tangents: Tensor) -> Tensor:
        halves, n = self.halves, len(self.x)
        self.tangents = self.arena.empty(tuple(tangents.shape), tangents.dtype).copy_(tangents)
        with self.backward.noting(self.arena) as note:
            args = [halves.saved_as(one, outputs, self.tangents, n) for one in halves.saved]
            grad: Tensor = halves.backward(*args)[halves.at]
        self.grad = grad.permute(0, 3, 1, 2) if is_gray(self.x) else grad
        self.outputs, self.refused = None, note.refused or self._why_not()
        self.bytes = self.arena.bytes + self.forward.bytes + self.backward.bytes
        return self.grad

    def _why_not(self) -> str | None:
        others = self.forward.others + self.backward.others
        kernels = self.forward.kernels + self.backward.kernels
        return f"{others} ops of ATen's beside {kernels} kernels" if others > kernels else None

    def follow(self) -> bool:
        """Whether the weights stand where they did, or were followed to where they are now: looked
        up once in an attack. ATen's ops hold on to the tensors that they were given."""
        runner, period = self.halves.forward, self.halves.forward.weights.period
        self.kept = (runner.weights.held or {}).get(runner)
        if self.period == period and self.kept is not None:
            return True
        given = self.halves.inputs_of(self.module, self.x)
        self.kept, self.period = runner.kept(given), period
        before, self.places = self.places, _places(given, self.kept)
        moved = [
            Move(was, size, now)
            for (was, size), (now, _) in zip(before, self.places, strict=True)
            if was != now
        ]
        if moved:
            self.forward.move(moved)
            self.backward.move(moved)
        # Where the backward is still to be noted, it would be with the weights of then.
        return not moved or not (self.forward.others or self.backward.others or self.outputs)


def _places(given: Sequence[Any], kept: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Where each weight stands, and how many bytes it spans."""
    tensors = [t for t in (*given, *kept) if isinstance(t, Tensor)]
    spans = [
        1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) for t in tensors
    ]
    return [(t.data_ptr(), span * t.element_size()) for t, span in zip(tensors, spans, strict=True)]


def _rows_like(x: Tensor, arena: Pool) -> Tensor:
    """Memory for x as a graph reads it."""
    if not is_image(x):
        return arena.empty(tuple(x.shape), x.dtype)
    n, channels, height, width = x.shape
    return arena.empty((n, height, width, channels), x.dtype).permute(0, 3, 1, 2)


class Loan:
    """A plan between its forward and its last pull: nobody else's."""

    def __init__(self, plans: Plans, key: Key, plan: Plan, contiguous: bool) -> None:
        self.plans, self.key, self.plan, self.contiguous = plans, key, plan, contiguous

    @property
    def is_noted(self) -> bool:
        """Whether its plan has a backward of one tangent a sample."""
        plan = self.plan
        if plan.outputs is not None or plan.tangents is None:
            return False
        return len(plan.tangents) == len(plan.x)

    def __call__(self, tangents: Tensor) -> Tensor:
        noting = self.plan.outputs is not None
        grad = self.plan.pull(self.contiguous, tangents)
        if noting:
            self.plans.look_at(self.key, self.plan)
        return grad

    def __del__(self) -> None:
        self.plans.give_back(self.key, self.plan)


class Plans:
    """The plans of one gradient, by how many samples and how many tangents of each.

    A size is planned when it comes for the second time: the last batch of a loader may never come
    again. Forwards that live at once, and threads, have a plan each.
    """

    def __init__(self, halves: Halves) -> None:
        self._halves = halves
        self._free: OrderedDict[Key, list[Plan]] = OrderedDict()  # the sizes that came
        self._bytes = 0  # of those
        self._large: set[Key] = set()
        self._lock = RLock()  # a loan may end wherever Python collects garbage
        self.why_not: str | None = None if backend().is_native else "no compiled kernels"
        self.notes: dict[Key, str] = {}

    def vjp(self, module: nn.Module, x: Tensor, rows: int) -> tuple[Tensor, Pull] | None:
        """As Halves.vjp; None: no plan serves."""
        key = len(x), rows
        if self.why_not is not None or key in self._large or torch._C._len_torch_dispatch_stack():
            return None  # a mode is to see each kernel
        with self._lock:
            if key not in self._free:
                self._free[key] = []
                return None
            self._free.move_to_end(key)
            plan = self._free[key].pop() if self._free[key] else None
            self._bytes -= plan.bytes if plan is not None else 0
        if plan is None or not plan.follow():
            plan = Plan(self._halves, module, x)
            self.look_at(key, plan)
            if plan.refused is not None:
                return None
        loan = Loan(self, key, plan, x.is_contiguous())
        return plan.ascend(x), loan

    def give_back(self, key: Key, plan: Plan) -> None:
        """For the next to come; the sizes that came least lately make room."""
        plan.kept = None
        with self._lock:
            if plan.stale or plan.refused is not None or key in self._large:
                return
            self._free[key].append(plan)
            self._bytes += plan.bytes
            while self._bytes > _MOST:
                oldest, plans = next(found for found in self._free.items() if found[1])
                self._bytes -= plans.pop().bytes
                self.notes.pop(oldest, None)

    def report(self) -> list[str]:
        """What became of the gradients that attacks take without autograd."""
        lines = [
            f"plan for {n} sample(s), {rows} tangent(s) of each: {note}"
            for (n, rows), note in list(self.notes.items())
        ]
        return lines + [f"no plan, layer by layer: {self.why_not}"] * (self.why_not is not None)

    def look_at(self, key: Key, plan: Plan) -> None:
        """Says in `notes` what a plan is, and whether it is one to keep."""
        size = f"{plan.bytes / 2**20:.1f} MiB"
        if plan.refused is not None:
            self.why_not = plan.refused
        elif plan.bytes > _MOST:
            self._large.add(key)
            self.notes[key] = f"none, its buffers would take {size}"
        else:
            ours, others = (plan.forward, plan.backward), plan.forward.others + plan.backward.others
            between = f"with {others} of ATen's between" if others else "in two calls"
            self.notes[key] = f"{ours[0].kernels} + {ours[1].kernels} kernels {between}, {size}"
