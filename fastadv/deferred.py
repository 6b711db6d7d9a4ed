"""Triton's kernels of the ops, imported at the first call on a CUDA tensor.

Importing Triton takes about a second, which nobody without a GPU should wait for. So an op's CUDA
kernel is a function that imports fastadv.kernels when it is first called, and passes on to what
that registers: 0.3 us a call beside a launch of some 10.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from threading import RLock
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[..., Any]


class Deferred:
    """The ops' kernels; an op that has none runs as it is defined."""

    def __init__(self) -> None:
        self._kernels: dict[str, Kernel] = {}
        self._loaded = False
        self._lock = RLock()

    def serve(self, library: Any, name: str, defined_by: Kernel) -> None:
        """Registers one op for CUDA on a torch.library.Library."""
        self._kernels[name] = defined_by
        library.impl(name, self._kernel(name), "CUDA")

    def impl(self, name: str, kernel: Kernel, key: str) -> None:
        """What fastadv.kernels.register calls, as torch.library.Library.impl."""
        if name not in self._kernels or key != "CUDA":
            raise ValueError(f"`name` must be an op, and `key` CUDA, got {name!r} and {key!r}")
        self._kernels[name] = kernel

    def _kernel(self, name: str) -> Kernel:
        def run(*args: Any) -> Any:
            if not self._loaded:
                self._load()
            device = next(arg.device for arg in args if isinstance(arg, Tensor))
            if device.index == torch.cuda.current_device():
                return self._kernels[name](*args)
            with torch.cuda.device(device):  # a launch goes to the current device
                return self._kernels[name](*args)

        return run

    def _load(self) -> None:
        with self._lock:
            if self._loaded:
                return
            try:
                import_module("fastadv.kernels").register(self)
            except ImportError as error:
                raise RuntimeError(
                    f"Triton is installed but does not load: {error}. "
                    "FASTADV_BACKEND=reference runs the ops without it, slower"
                ) from error
            self._loaded = True
