"""What a figure was measured on: it stands in every row."""

from __future__ import annotations

import subprocess
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

from fastadv.evaluation.environment import environment


@lru_cache
def facts() -> dict[str, str | int]:
    """Time, commit (with a + where files have changed since), processor, caches, versions."""
    caches = _caches()
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "l2_bytes": caches.get(2, 0),
        "l3_bytes": caches.get(3, 0),
        **{name: value for name, value in environment().items() if name != "threads"},
    }


def commit() -> str:
    """The short commit, with a + where tracked files have changed since."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def fits(bytes_touched: int) -> str:
    """The smallest cache that holds a working set: "L2", "L3" or "memory"."""
    for level in (2, 3):
        if bytes_touched <= _caches().get(level, 0):
            return f"L{level}"
    return "memory"


@lru_cache
def _caches() -> dict[int, int]:
    sizes: dict[int, int] = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if (folder / "type").read_text().strip() != "Instruction":
            kibibytes = int((folder / "size").read_text().strip().removesuffix("K"))
            sizes[int((folder / "level").read_text())] = 1024 * kibibytes
    return sizes
