"""What one gradient takes of memory, in this process: bench.memory starts it, a process a case.

The model is compiled and its weights packed before, in a thread that ends, and with it what its
kernels kept for it (csrc/cpu/workspace.h). The engine's pool is emptied, and malloc gives back what
is free: after the warm-up, and of larger blocks at once, or what a step has freed
would count beside what it holds. What the gradient takes is the process's own peak, as Linux counts
it, and once more, in another run, the peak of torch's allocator as its profiler saw it: the first
sees the kernels' workspaces too.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import torch

import fastadv as fa
from bench import flips, fresh
from bench.nets import NETS, image_shape
from fastadv.engine.pool import pool

_SELF = Path("/proc/self")
_LIBC = ctypes.CDLL(None)
_MMAP_THRESHOLD = -3  # mallopt(3)'s number of it


def measured(model: str, batch: int, threads: int, compiled: bool) -> dict[str, float]:
    """Bytes: peak, allocated, packed; and the gradient's median error."""
    _LIBC.mallopt(_MMAP_THRESHOLD, 1 << 16)
    torch.manual_seed(0)
    net = NETS[model]().eval()
    x, y = torch.rand(batch, *image_shape(model)), torch.arange(batch) % 10
    target = fa.compile(net) if compiled else net

    def step() -> None:
        flips.gradient(target, x, y)

    torch.set_num_threads(1)  # or the other threads' workspaces would stay
    in_a_thread(step)
    torch.set_num_threads(threads)
    peak = in_a_thread(lambda: _peak(step))
    allocated = _allocated(step)
    packed = target._weights.bytes if isinstance(target, fa.engine.Compiled) else 0
    error = flips.errors(net, target, x, y).median()
    return {"peak": peak, "allocated": allocated, "packed": packed, "error": float(error)}


def in_a_thread(call: Callable[[], Any]) -> Any:
    """call() in a thread of its own; then memory that no one holds goes back to the system."""
    results: list[Any] = []
    thread = Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    gc.collect()
    pool._buffers.clear()
    _LIBC.malloc_trim(0)
    return results[0]


def _peak(step: Callable[[], None]) -> int:
    (_SELF / "clear_refs").write_text("5")  # the peak starts anew: proc(5)
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = (_SELF / "status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _allocated(step: Callable[[], None]) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    results: Any = profile.profiler.kineto_results
    events = [e for e in results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


if __name__ == "__main__":
    fresh.answer(measured)
