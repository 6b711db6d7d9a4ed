"""Runs interpret_*.py in a process that has Triton interpret its kernels on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: no kernels to interpret"
)
FILES = sorted(map(str, Path(__file__).parent.glob("interpret_*.py")))


def test_interpreted() -> None:
    """All in one process, since its imports take 5 s."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "interpreted"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *FILES],
        env={
            **os.environ,
            "PYTHONPATH": path,
            "TRITON_INTERPRET": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
