"""What a result was computed with: it stands in every report."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy
import torch

from fastadv import ops


def environment() -> dict[str, str | int]:
    """Versions, backend, processor and threads; plain values for JSON."""
    from fastadv import __version__

    backend = ops.backend()
    return {
        "fastadv": __version__,
        "backend": str(backend),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
