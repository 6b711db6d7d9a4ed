"""fastadv's Triton kernels, installed as `fastadv.kernels`. Importing this needs no Triton."""

from __future__ import annotations

import torch


def register(library: torch.library.Library) -> None:
    """Registers every kernel for CUDA: `library` is a torch.library.Library("fastadv", "IMPL").

    Raises ModuleNotFoundError where Triton is not installed.
    """
    from fastadv.kernels import launch

    for name, function in launch.IMPLEMENTATIONS.items():
        library.impl(name, function, "CUDA")
