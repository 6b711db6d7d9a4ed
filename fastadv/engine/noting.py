"""Noting what a thread's calls of kernels do, to do it again in one call (csrc/cpu/plan.h)."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastadv import _build_info
from fastadv.engine.pool import Pool, pool

_NOTED = {
    f"fastadv::{name}_"
    for name in ("winograd", "winograd_gradient", "direct", "fold", "depthwise",
                 "depthwise_gradient", "max_pool", "max_pool_gradient", "activate",
                 "activate_gradient", "linear", "attention", "attention_gradient", "norm",
                 "norm_gradient", "mean", "step_linf", "step_l2", "step_l1", "watch")
} | {"fastadv::head"}  # fmt: skip
_ALLOCATES = ("aten::empty", "aten::new_empty", "aten::set_")  # as pool.py and calls.py do
_DIMS = 6
_LARGEST = 1 << 18  # bytes of a result of ATen's: to copy more takes as long as Python's layer


class _Copy(ctypes.Structure):
    _fields_ = (
        ("from_", ctypes.c_void_p), ("to", ctypes.c_void_p), ("sizes", ctypes.c_int64 * _DIMS),
        ("strides", ctypes.c_int64 * _DIMS), ("bytes", ctypes.c_int64),
    )  # fmt: skip


class Move(ctypes.Structure):
    _fields_ = (("from_", ctypes.c_void_p), ("bytes", ctypes.c_int64), ("to", ctypes.c_void_p))


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_build_info.read().path("_C")))
    library.fastadv_plan_new.restype = ctypes.c_void_p
    library.fastadv_plan_size.restype = ctypes.c_int64
    for name in ("delete", "note", "size"):
        getattr(library, f"fastadv_plan_{name}").argtypes = (ctypes.c_void_p,)
    many = ctypes.POINTER(ctypes.c_void_p)
    library.fastadv_plan_run.argtypes = (many, ctypes.c_int64, ctypes.c_int64)
    library.fastadv_plan_move.argtypes = (ctypes.c_void_p, ctypes.POINTER(Move), ctypes.c_int64)
    library.fastadv_plan_copy.argtypes = (ctypes.POINTER(_Copy),)
    return library


class Note(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what a graph does: kernels of ours note themselves, copies and ATen's ops are noted
    here, views do nothing. `refused`: the first op of those that no plan can do again.
    keeps: whether the calls hold on to what they were given, for which no arena cares."""

    def __init__(self, calls: Calls, keeps: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls, self.keeps = calls, keeps
        self.refused: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        if name == "aten::clone":
            copied = _copied(args[0], kwargs.get("memory_format"))
            if copied is not None:
                return copied
        if name == "aten::copy_" and _copy(*args[:2]):
            return args[0]
        out = func(*args, **kwargs)
        if name in _NOTED or name in _ALLOCATES:
            if self.keeps:
                self.calls.kept.append((args, out))
            return out
        mutable = func._schema.is_mutable
        if mutable or not _is_view(out, args):
            into, draws = _into(func), torch.Tag.nondeterministic_seeded in func.tags
            if mutable or draws or not (into or _is_small(out)):
                self.refused = self.refused or f"{name} writes, draws or has a large result"
            self.calls.add(_Aten(into or func, args, kwargs, out, into is not None))
        return out


@dataclass(frozen=True)
class _Aten:
    """An op of ATen's between kernels, and the results that are to be there after it."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    writes: bool  # its result where it is told to

    def run(self) -> None:
        if self.writes:
            self.func(*self.args, **self.kwargs, out=self.out)
            return
        found = _all(self.func(*self.args, **self.kwargs))
        for new, kept in zip(found, _all(self.out), strict=True):
            if kept is not None:
                kept.copy_(new)


def _into(func: Any) -> Any:
    """The form of an elementwise op that writes into a tensor, which then allocates nothing."""
    if torch.Tag.pointwise not in func.tags:
        return None
    count = len(func._schema.arguments)
    for name in (f"{func._overloadname}_out", "out"):
        found = getattr(func.overloadpacket, name, None)
        if found is not None and len(found._schema.arguments) == count + 1:
            return found
    return None


def _all(out: Any) -> tuple[Any, ...]:
    return tuple(out) if isinstance(out, (tuple, list)) else (out,)


def _is_small(out: Any) -> bool:
    """Whether results are tensors, or none, that are cheap to copy."""
    return all(t is None or (isinstance(t, Tensor) and t.nbytes <= _LARGEST) for t in _all(out))


def _is_view(out: Any, args: tuple[Any, ...]) -> bool:
    """Whether all of an op's results are memory that it was given."""
    given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
    return all(isinstance(t, Tensor) and t.untyped_storage().data_ptr() in given for t in _all(out))


def _copied(x: Tensor, memory_format: torch.memory_format | None) -> Tensor | None:
    """x.clone(), noted; None where the kernel does not serve."""
    if memory_format is torch.channels_last:
        rows = _copied(x.permute(0, 2, 3, 1), torch.contiguous_format)
        return None if rows is None else rows.permute(0, 3, 1, 2)
    if memory_format is not torch.contiguous_format or not _is_copied(x):
        return None
    y = pool.empty(tuple(x.shape), x.dtype)
    return y if _copy(y, x) else None


def _is_copied(x: Tensor) -> bool:
    same = not x.is_conj() and not x.is_neg()  # else the bytes are not the numbers
    return x.dim() <= _DIMS and x.element_size() <= 8 and same


def _copy(y: Tensor, x: Tensor) -> bool:
    """y <- x, noted; False where the kernel does not serve."""
    strides = y.stride()
    order = sorted(range(y.dim()), key=lambda d: -strides[d])
    to, from_ = y.permute(order), x.permute(order) if x.shape == y.shape else x
    if from_.shape != to.shape or x.dtype != y.dtype or not to.is_contiguous():
        return False
    if not _is_copied(x) or not _is_copied(y):
        return False
    lines = _lines(from_)
    lines += [(1, 0)] * (_DIMS - len(lines))
    sizes, steps = zip(*lines, strict=True)
    fields = (ctypes.c_int64 * _DIMS)(*sizes), (ctypes.c_int64 * _DIMS)(*steps)
    size = x.element_size()
    _check(_library().fastadv_plan_copy(_Copy(x.data_ptr(), y.data_ptr(), *fields, size)))
    return True


def _lines(x: Tensor) -> list[tuple[int, int]]:
    """Size and stride in bytes of each dimension, the last one first; those that follow on one
    another in memory are one."""
    lines: list[tuple[int, int]] = []
    for size, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        stride *= x.element_size()
        if lines and stride == lines[-1][0] * lines[-1][1]:
            lines[-1] = lines[-1][0] * size, lines[-1][1]
        elif size != 1:
            lines.append((size, stride))
    return lines


def _check(failed: int) -> None:
    if failed:
        raise RuntimeError("a plan could not run: memory or a thread was refused")


class _Kernels:
    """Noted calls of kernels."""

    def __init__(self) -> None:
        self._library = _library()
        self.plan = self._library.fastadv_plan_new()
        delete = weakref.finalize(self, self._library.fastadv_plan_delete, self.plan)
        delete.atexit = False  # a thread may still run it

    def __len__(self) -> int:
        return int(self._library.fastadv_plan_size(self.plan))

    def note(self) -> None:
        self._library.fastadv_plan_note(self.plan)

    def run(self) -> None:
        repeat([self], 1)

    def move(self, moves: Any) -> None:
        self._library.fastadv_plan_move(self.plan, moves, len(moves))


def repeat(steps: Sequence[_Kernels], times: int) -> None:
    """Makes the calls of all of them again, so many times, in one call."""
    plans = (ctypes.c_void_p * len(steps))(*(step.plan for step in steps))
    _check(_library().fastadv_plan_run(plans, len(steps), times))


class Calls:
    """What a graph did: kernels, and where it has them ATen's ops between."""

    def __init__(self) -> None:
        self._steps: list[_Kernels | _Aten] = []
        self.kept: list[Any] = []  # memory that they read or write

    @property
    def steps(self) -> list[_Kernels | _Aten]:
        return [step for step in self._steps if isinstance(step, _Aten) or len(step)]

    @property
    def kernels(self) -> int:
        return sum(len(step) for step in self._steps if isinstance(step, _Kernels))

    @property
    def others(self) -> int:
        return sum(isinstance(step, _Aten) for step in self._steps)

    @property
    def bytes(self) -> int:
        """Of the results of ATen's ops, which are no arena's."""
        results = (t for step in self._steps if isinstance(step, _Aten) for t in _all(step.out))
        return sum(t.nbytes for t in results if t is not None)

    @contextmanager
    def noting(self, arena: Pool, keeps: bool = False) -> Iterator[Note]:
        """This thread's calls are noted, and their memory is the arena's."""
        try:
            self._begin()
            with pool.replaced_by(arena), Note(self, keeps) as note:
                yield note
        finally:
            _library().fastadv_plan_note(None)

    def _begin(self) -> None:
        kernels = _Kernels()
        kernels.note()
        self._steps.append(kernels)

    def add(self, op: _Aten) -> None:
        """What follows comes after it."""
        self._steps = [*self.steps, op]
        self._begin()

    def run(self) -> None:
        for step in self._steps:
            step.run()

    def move(self, moves: Sequence[Move]) -> None:
        array = (Move * len(moves))(*moves)
        for step in self._steps:
            if isinstance(step, _Kernels):
                step.move(array)


class Repeated:
    """Calls of several parts, in their order, again and again."""

    def __init__(self, parts: Sequence[Calls]) -> None:
        steps = [step for part in parts for step in part.steps]
        kernels = [step for step in steps if isinstance(step, _Kernels)]
        self._parts, self._steps, self._kernels = parts, steps, kernels

    @property
    def others(self) -> int:
        """Ops of ATen's, which come back to Python."""
        return len(self._steps) - len(self._kernels)

    def run(self, times: int) -> None:
        if not self.others:
            return repeat(self._kernels, times)
        for _ in range(times):
            for step in self._steps:
                step.run()
