"""Plans: a captured gradient's kernels in two calls, one forward and one backward.

Layer by layer (halves.py) Python takes 20 us a kernel: on LeNet, one sample, more than the kernels.
So what a forward and its backward do is noted once, in memory that is the plan's own, and from then
on csrc/cpu/plan.cpp does it again: nothing is allocated but what is handed out. Packed weights that
have moved since are looked up once an attack.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastadv import _build_info
from fastadv.engine.formats import is_gray, is_image
from fastadv.engine.pool import Pool, pool
from fastadv.model import Pull
from fastadv.ops import backend

if TYPE_CHECKING:
    from fastadv.engine.halves import Halves

Key = tuple[int, int]

_NOTED = {
    f"fastadv::{name}_"
    for name in ("winograd", "direct", "fold", "max_pool", "max_pool_gradient", "relu",
                 "affine_relu")
}  # fmt: skip
_ALLOCATES = ("aten::empty", "aten::set_")  # as pool.py does
_DIMS = 6
_MOST = 64 << 20  # bytes of all plans of a gradient: larger ones wait for kernels, not for Python


class _Copy(ctypes.Structure):
    _fields_ = (
        ("from_", ctypes.c_void_p), ("to", ctypes.c_void_p), ("sizes", ctypes.c_int64 * _DIMS),
        ("strides", ctypes.c_int64 * _DIMS), ("bytes", ctypes.c_int64),
    )  # fmt: skip


class _Move(ctypes.Structure):
    _fields_ = (("from_", ctypes.c_void_p), ("bytes", ctypes.c_int64), ("to", ctypes.c_void_p))


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_build_info.read().path("_C")))
    library.fastadv_plan_new.restype = ctypes.c_void_p
    library.fastadv_plan_size.restype = ctypes.c_int64
    for name in ("delete", "note", "size", "run"):
        getattr(library, f"fastadv_plan_{name}").argtypes = (ctypes.c_void_p,)
    library.fastadv_plan_move.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Move), ctypes.c_int64)
    library.fastadv_plan_copy.argtypes = (ctypes.POINTER(_Copy),)
    return library


class _Note(TorchDispatchMode):
    """Sees what a graph does: kernels of ours note themselves, copies are noted here, views do
    nothing. `foreign`: the first of what is left, which no plan can do again."""

    def __init__(self) -> None:
        super().__init__()
        self.foreign: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        if name == "aten::clone":
            copied = _copied(args[0], kwargs.get("memory_format"))
            if copied is not None:
                return copied
        out = func(*args, **kwargs)
        known = name in _NOTED or name in _ALLOCATES
        if not known and (func._schema.is_mutable or not _is_view(out, args)):
            self.foreign = self.foreign or name
        return out


def _is_view(out: Any, args: tuple[Any, ...]) -> bool:
    """Whether all of an op's results are memory that it was given."""
    given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
    outs = out if isinstance(out, (tuple, list)) else (out,)
    return all(isinstance(t, Tensor) and t.untyped_storage().data_ptr() in given for t in outs)


def _copied(x: Tensor, memory_format: torch.memory_format | None) -> Tensor | None:
    """x.clone(), noted; None where the kernel does not serve."""
    if memory_format is torch.channels_last:
        rows = _copied(x.permute(0, 2, 3, 1), torch.contiguous_format)
        return None if rows is None else rows.permute(0, 3, 1, 2)
    size, rest = x.element_size(), _DIMS - x.dim()
    if memory_format is not torch.contiguous_format or rest < 0 or size > 8:
        return None
    y = pool.empty(tuple(x.shape), x.dtype)
    sizes = (*reversed(x.shape), *[1] * rest)
    strides = (*(size * s for s in reversed(x.stride())), *[0] * rest)
    fields = (ctypes.c_int64 * _DIMS)(*sizes), (ctypes.c_int64 * _DIMS)(*strides)
    _check(_library().fastadv_plan_copy(_Copy(x.data_ptr(), y.data_ptr(), *fields, size)))
    return y


def _check(failed: int) -> None:
    if failed:
        raise RuntimeError("a plan could not run: memory or a thread was refused")


class _Calls:
    """Noted calls of kernels."""

    def __init__(self) -> None:
        self._library = _library()
        self._plan = self._library.fastadv_plan_new()
        delete = weakref.finalize(self, self._library.fastadv_plan_delete, self._plan)
        delete.atexit = False  # a thread may still run it

    def __len__(self) -> int:
        return int(self._library.fastadv_plan_size(self._plan))

    @contextmanager
    def noting(self, arena: Pool) -> Iterator[_Note]:
        """This thread's calls are noted, and their memory is the arena's."""
        self._library.fastadv_plan_note(self._plan)
        try:
            with pool.replaced_by(arena), _Note() as note:
                yield note
        finally:
            self._library.fastadv_plan_note(None)

    def run(self) -> None:
        _check(self._library.fastadv_plan_run(self._plan))

    def move(self, moves: Sequence[_Move]) -> None:
        array = (_Move * len(moves))(*moves)
        self._library.fastadv_plan_move(self._plan, array, len(moves))


class Plan:
    """One forward, and one backward of its tangents, in memory of their own."""

    def __init__(self, halves: Halves, module: nn.Module, x: Tensor) -> None:
        self.halves, self.module = halves, module
        self.arena = Pool(0, sys.maxsize)  # it gives back nothing, to which a call may point
        self.x = _rows_like(x, self.arena)
        self.forward, self.backward = _Calls(), _Calls()
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
        self.foreign = note.foreign
        self.bytes = self.arena.bytes

    def ascend(self, x: Tensor) -> Tensor:
        """The logits at x."""
        self._follow()
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
        self.outputs, self.foreign, self.bytes = None, note.foreign, self.arena.bytes
        return self.grad

    def _follow(self) -> None:
        """The weights' present places, looked up once in an attack."""
        runner, period = self.halves.forward, self.halves.forward.weights.period
        self.kept = (runner.weights.held or {}).get(runner)
        if self.period == period and self.kept is not None:
            return
        given = self.halves.inputs_of(self.module, self.x)
        self.kept, self.period = runner.kept(given), period
        before, self.places = self.places, _places(given, self.kept)
        moved = [
            _Move(was, size, now)
            for (was, size), (now, _) in zip(before, self.places, strict=True)
            if was != now
        ]
        if moved:
            self.forward.move(moved)
            self.backward.move(moved)
            self.stale = self.outputs is not None  # what is to be noted are the weights of then
            self.outputs = None


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


class _Loan:
    """A plan between its forward and its last pull: nobody else's."""

    def __init__(self, plans: Plans, key: Key, plan: Plan, contiguous: bool) -> None:
        self.plans, self.key, self.plan, self.contiguous = plans, key, plan, contiguous

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
        self._lock = Lock()
        self.why_not: str | None = None if backend().is_native else "no compiled kernels"
        self.notes: dict[Key, str] = {}

    def vjp(self, module: nn.Module, x: Tensor, rows: int) -> tuple[Tensor, Pull] | None:
        """As Halves.vjp; None: no plan serves."""
        key = len(x), rows
        with self._lock:
            if self.why_not is not None or self.notes.get(key, "").startswith("none"):
                return None
            if key not in self._free:
                self._free[key] = []
                return None
            self._free.move_to_end(key)
            plan = self._free[key].pop() if self._free[key] else None
            self._bytes -= plan.bytes if plan is not None else 0
        if plan is None:
            plan = Plan(self._halves, module, x)
            self.look_at(key, plan)
            if plan.foreign is not None:
                return None
        loan = _Loan(self, key, plan, x.is_contiguous())
        return plan.ascend(x), loan

    def give_back(self, key: Key, plan: Plan) -> None:
        """For the next to come; the sizes that came least lately make room."""
        plan.kept = None
        with self._lock:
            if plan.stale or plan.foreign is not None or plan.bytes > _MOST:
                return
            self._free.setdefault(key, []).append(plan)
            self._bytes += plan.bytes
            while self._bytes > _MOST:
                oldest = next(plans for plans in self._free.values() if plans)
                self._bytes -= oldest.pop().bytes

    def look_at(self, key: Key, plan: Plan) -> None:
        """What `report()` says of a plan."""
        if plan.foreign is not None:
            self.why_not = f"{plan.foreign} is no kernel of fastadv"
        elif plan.bytes > _MOST:
            self.notes[key] = f"none, its buffers would take {plan.bytes / 2**20:.0f} MiB"
        else:
            calls = f"{len(plan.forward)} + {len(plan.backward)} kernels"
            self.notes[key] = f"{calls} in two calls, {plan.bytes / 2**20:.1f} MiB"
