"""Noting what a thread's calls of kernels do, to do it again in one call (csrc/cpu/plan.h)."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
                 "affine_relu")
}  # fmt: skip
_ALLOCATES = ("aten::empty", "aten::set_")  # as pool.py does
_DIMS = 6


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
    """Sees what a graph does: kernels of ours note themselves, copies are noted here, views do
    nothing. `foreign`: the first of what is left, which no plan can do again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
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


class Calls:
    """Noted calls of kernels."""

    def __init__(self) -> None:
        self._library = _library()
        self._plan = self._library.fastadv_plan_new()
        delete = weakref.finalize(self, self._library.fastadv_plan_delete, self._plan)
        delete.atexit = False  # a thread may still run it

    def __len__(self) -> int:
        return int(self._library.fastadv_plan_size(self._plan))

    @contextmanager
    def noting(self, arena: Pool) -> Iterator[Note]:
        """This thread's calls are noted, and their memory is the arena's."""
        self._library.fastadv_plan_note(self._plan)
        try:
            with pool.replaced_by(arena), Note() as note:
                yield note
        finally:
            self._library.fastadv_plan_note(None)

    def run(self) -> None:
        _check(self._library.fastadv_plan_run(self._plan))

    def move(self, moves: Sequence[Move]) -> None:
        array = (Move * len(moves))(*moves)
        self._library.fastadv_plan_move(self._plan, array, len(moves))
