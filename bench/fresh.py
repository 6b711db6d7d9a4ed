"""Measurements in a Python process of their own: nothing is imported, compiled or cached."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]


def measure(module: str, **options: str | int) -> dict[str, Any]:
    """What `python -m bench.<module>` answers. Raises RuntimeError, with its messages."""
    command = [sys.executable, "-m", f"bench.{module}", json.dumps(options)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"bench.{module} failed:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def answer(measured: Callable[..., dict[str, Any]]) -> None:
    """The other side: takes the options from the command line, prints what was measured."""
    print(json.dumps(measured(**json.loads(sys.argv[1]))))
