"""Which kernels serve: the compiled ones, or reference.py where they cannot."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

import torch

from fastadv import _build_info

_CHOICES = ("native", "reference")


@dataclass(frozen=True)
class Backend:
    """What serves the ops of each device, and why.

    cpu: "native (avx512)" or "reference", cuda: "reference".
    reason: why the CPU is served by the reference, None where it is not.
    """

    cpu: str
    cuda: str
    reason: str | None

    @property
    def is_native(self) -> bool:
        """Whether compiled kernels serve the CPU."""
        return self.cpu.startswith("native")

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"cpu: {self.cpu}{why}; cuda: {self.cuda} (plain torch)"


def load() -> Backend:
    """Loads the compiled ops as FASTADV_BACKEND asks: native, reference, or unset for the best.

    Raises ValueError for another value, and RuntimeError where native is asked for and missing.
    """
    wanted = os.environ.get("FASTADV_BACKEND", "")
    if wanted and wanted not in _CHOICES:
        raise ValueError(f"FASTADV_BACKEND must be native or reference, got '{wanted}'")
    if wanted == "reference":
        return Backend("reference", "reference", "FASTADV_BACKEND=reference")
    build = _build_info.read()
    reason = build.reason
    library = build.path("_C")
    if library is not None:
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError as error:
            reason = f"{library.name} does not load: {str(error).splitlines()[0]}"
        else:
            from fastadv import _native

            share_threads = ctypes.CDLL(str(library)).fastadv_parallel_for
            _native.use_parallel_for(ctypes.cast(share_threads, ctypes.c_void_p).value or 0)
            return Backend(f"native ({_native.capability()})", "reference", None)
    if wanted == "native":
        raise RuntimeError(f"FASTADV_BACKEND=native, but there are no compiled kernels: {reason}")
    return Backend("reference", "reference", reason)
