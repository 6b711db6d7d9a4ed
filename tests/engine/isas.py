"""A file's tests once more, in a process whose kernels are another instruction set's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

others = pytest.mark.parametrize("isa", ["baseline", "avx2"])


def run_again(file: str, isa: str, chosen: str = "") -> None:
    """The tests of `file` whose names have a word of `chosen`, or all; skips where it cannot."""
    from fastadv import _native

    if isa not in _native.processor()["available"] or "FASTADV_CPU_CAPABILITY" in os.environ:
        pytest.skip(f"no {isa} here, or asked for by hand")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        file,
        *(["-k", chosen] if chosen else []),
    ]
    environment = {**os.environ, "FASTADV_CPU_CAPABILITY": isa, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
