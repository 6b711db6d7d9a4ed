"""Which kernels serve: the compiled ones and Triton's, or reference.py where they cannot."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from dataclasses import dataclass

import torch

from fastadv import _build_info

_CHOICES = ("native", "triton", "cuda", "reference")


@dataclass(frozen=True)
class Backend:
    """What serves the ops of each device, and why.

    cpu: "native (avx512)" or "reference". reason: why the reference, None where it is not.
    cuda: "triton", "cuda" (the compiled _C_cuda) or "reference". cuda_reason: why that one.
    """

    cpu: str
    cuda: str
    reason: str | None
    cuda_reason: str

    @property
    def is_native(self) -> bool:
        """Whether compiled kernels serve the CPU."""
        return self.cpu.startswith("native")

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"cpu: {self.cpu}{why}; cuda: {self.cuda} ({self.cuda_reason})"


def load() -> Backend:
    """Loads the compiled ops as FASTADV_BACKEND asks.

    FASTADV_BACKEND names what has to serve: native the CPU, triton or cuda the CUDA devices,
    reference both. What it does not name gets the best there is: on the CPU native; on CUDA
    Triton where it is installed, else the compiled kernels; and the reference where nothing is.
    Triton itself is imported at the first call on a CUDA tensor: see ops.py.

    Raises ValueError for another value, and RuntimeError where what is asked for is missing.
    """
    wanted = os.environ.get("FASTADV_BACKEND", "")
    if wanted and wanted not in _CHOICES:
        raise ValueError(
            f"FASTADV_BACKEND must be native, triton, cuda or reference, got '{wanted}'"
        )
    if wanted == "reference":
        why = "FASTADV_BACKEND=reference"
        return Backend("reference", "reference", why, why)
    build = _build_info.read()
    native, reason = _load_native(build)
    if wanted == "native" and native is None:
        raise RuntimeError(f"FASTADV_BACKEND=native, but there are no compiled kernels: {reason}")
    cuda, cuda_reason = _load_cuda(build, wanted)
    return Backend(native or "reference", cuda, reason, cuda_reason)


def _load_native(build: _build_info.BuildInfo) -> tuple[str | None, str | None]:
    """(the CPU's compiled kernels, None), or (None, why there are none)."""
    library = build.path("_C")
    if library is None:
        return None, build.reason
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError as error:
        return None, f"{library.name} does not load: {str(error).splitlines()[0]}"
    from fastadv import _native

    share_threads = ctypes.CDLL(str(library)).fastadv_parallel_for
    _native.use_parallel_for(ctypes.cast(share_threads, ctypes.c_void_p).value or 0)
    return f"native ({_native.capability()})", None


def _load_cuda(build: _build_info.BuildInfo, wanted: str) -> tuple[str, str]:
    """(what serves CUDA devices, why). Triton is looked for, not imported: that takes a second."""
    triton = importlib.util.find_spec("triton") is not None
    if wanted == "triton" and not triton:
        raise RuntimeError(
            "FASTADV_BACKEND=triton, but Triton is not installed: pip install triton (Linux)"
        )
    asked = f"FASTADV_BACKEND={wanted}"
    if triton and wanted != "cuda":
        return "triton", asked if wanted == "triton" else "the default: Triton is installed"
    reason = build.cuda_reason or "build with FASTADV_CUDA=1"
    library, why = build.path("_C_cuda"), f"_C_cuda is not built: {reason}"
    if library is not None:
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError as error:
            why = f"{library.name} does not load: {str(error).splitlines()[0]}"
        else:
            return "cuda", asked if wanted == "cuda" else "Triton is not installed"
    if wanted == "cuda":
        raise RuntimeError(f"FASTADV_BACKEND=cuda, but there are no compiled CUDA kernels: {why}")
    return "reference", f"Triton is not installed, and {why}"
