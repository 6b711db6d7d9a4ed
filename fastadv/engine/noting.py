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
    for name in ("winograd", "direct", "fold", "max_pool", "max_pool_gradient", "relu",
                 "affine_relu", "linear")
}  # fmt: skip
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
    for name in ("delete", "note", "size", "run"):
        getattr(library, f"fastadv_plan_{name}").argtypes = (ctypes.c_void_p,)
    library.fastadv_plan_move.argtypes = (ctypes.c_void_p, ctypes.POINTER(Move), ctypes.c_int64)
    library.fastadv_plan_copy.argtypes = (ctypes.POINTER(_Copy),)
    return library


class Note(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what a graph does: kernels of ours note themselves, copies and ATen's ops are noted
    here, views do nothing. `refused`: the first op of those that no plan can do again."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = calls
        self.refused: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        if name == "aten::clone":
            copied = _copied(args[0], kwargs.get("memory_format"))
            if copied is not None:
                return copied
        out = func(*args, **kwargs)
        if name in _NOTED or name in _ALLOCATES:
            return out
        mutable = func._schema.is_mutable
        if mutable or not _is_view(out, args):
            if mutable or torch.Tag.nondeterministic_seeded in func.tags or not _is_small(out):
                self.refused = self.refused or f"{name} writes, draws or has a large result"
            self.calls.add(_Aten(func, args, kwargs, out))
        return out


@dataclass(frozen=True)
class _Aten:
    """An op of ATen's between kernels, and the results that are to be there after it."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def run(self) -> None:
        found = _all(self.func(*self.args, **self.kwargs))
        for new, kept in zip(found, _all(self.out), strict=True):
            if kept is not None:
                kept.copy_(new)


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
    size, rest = x.element_size(), _DIMS - x.dim()
    same = not x.is_conj() and not x.is_neg()  # else the bytes are not the numbers
    if memory_format is not torch.contiguous_format or rest < 0 or size > 8 or not same:
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


class _Kernels:
    """Noted calls of kernels."""

    def __init__(self) -> None:
        self._library = _library()
        self._plan = self._library.fastadv_plan_new()
        delete = weakref.finalize(self, self._library.fastadv_plan_delete, self._plan)
        delete.atexit = False  # a thread may still run it

    def __len__(self) -> int:
        return int(self._library.fastadv_plan_size(self._plan))

    def note(self) -> None:
        self._library.fastadv_plan_note(self._plan)

    def run(self) -> None:
        _check(self._library.fastadv_plan_run(self._plan))

    def move(self, moves: Any) -> None:
        self._library.fastadv_plan_move(self._plan, moves, len(moves))


class Calls:
    """What a graph did: kernels, and where it has them ATen's ops between."""

    def __init__(self) -> None:
        self._steps: list[_Kernels | _Aten] = []

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
    def noting(self, arena: Pool) -> Iterator[Note]:
        """This thread's calls are noted, and their memory is the arena's."""
        self._begin()
        try:
            with pool.replaced_by(arena), Note(self) as note:
                yield note
        finally:
            _library().fastadv_plan_note(None)

    def _begin(self) -> None:
        kernels = _Kernels()
        kernels.note()
        self._steps.append(kernels)

    def add(self, op: _Aten) -> None:
        """What follows comes after it."""
        self._steps = [step for step in self._steps if isinstance(step, _Aten) or len(step)]
        self._steps.append(op)
        self._begin()

    def run(self) -> None:
        for step in self._steps:
            step.run()

    def move(self, moves: Sequence[Move]) -> None:
        array = (Move * len(moves))(*moves)
        for step in self._steps:
            if isinstance(step, _Kernels):
                step.move(array)
