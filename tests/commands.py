"""Commands of the shell, for the tests of the build."""

from __future__ import annotations

import os
import subprocess


def call(*command: object, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs a command without the variables that would choose a compiler, a copy or a policy."""
    chosen = ("CXX", "CC", "FASTADV_", "PYTHON", "MAKE", "MFLAGS")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(chosen)}
    folder = more.pop("cwd", None)
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=clean | more,
        capture_output=True,
        text=True,
    )
