"""What the captured step asks of a CUDA device: a stream, a capture, replays. All of it is here,
so that the rest runs on the CPU against a stand-in (tests/fake_graph.py)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

Run = Callable[[], None]


class Graphs(Protocol):
    """The graphs of one device, which share one pool of memory: one is replayed at a time."""

    def rehearse(self, run: Run, watched: bool) -> None:
        """Runs `run` aside, as a capture does; watched: RuntimeError where it waits."""

    def capture(self, run: Run) -> Run:
        """Records `run`; the result replays it. Raises RuntimeError for what cannot be recorded."""

    def random_state(self) -> torch.Tensor:
        """The state of the default generator, which a capture registers by itself."""

    def set_random_state(self, state: torch.Tensor) -> None: ...

    def enter(self) -> None:
        """The work that follows waits for the work before the last `leave`, on whatever stream."""

    def leave(self) -> None: ...

    def synchronise(self) -> None:
        """Waits for the device."""


class CudaGraphs:
    """torch.cuda's. Unverified: nobody has run it on a device yet."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        with torch.cuda.device(device):
            self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self.pool = torch.cuda.graph_pool_handle()
            self._left = torch.cuda.Event()  # type: ignore[no-untyped-call]

    @contextmanager
    def _aside(self) -> Iterator[None]:
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream()
            self.stream.wait_stream(current)
            try:
                with torch.cuda.stream(self.stream):
                    yield
            finally:  # memory that is freed next is in use until then
                current.wait_stream(self.stream)

    def rehearse(self, run: Run, watched: bool) -> None:
        before = torch.cuda.get_sync_debug_mode()
        with self._aside():
            _watch("error" if watched else before)
            try:
                run()
            finally:
                _watch(before)

    def capture(self, run: Run) -> Run:
        graph = torch.cuda.CUDAGraph()
        # thread_local: a loader that pins memory in another thread does not spoil the capture.
        try:
            with (
                torch.cuda.device(self.device),
                torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"),
            ):
                run()
        except BaseException:
            self.pool = torch.cuda.graph_pool_handle()  # what was cut off may have left it open
            raise

        def replay() -> None:
            with torch.cuda.device(self.device):
                graph.replay()

        return replay

    def random_state(self) -> torch.Tensor:
        return torch.cuda.get_rng_state(self.device)

    def set_random_state(self, state: torch.Tensor) -> None:
        torch.cuda.set_rng_state(state, self.device)

    def enter(self) -> None:
        torch.cuda.current_stream(self.device).wait_event(self._left)

    def leave(self) -> None:
        self._left.record(torch.cuda.current_stream(self.device))

    def synchronise(self) -> None:
        torch.cuda.synchronize(self.device)


# Those of a device type; the tests put a stand-in for the CPU here.
GRAPHS: dict[str, Callable[[torch.device], Graphs]] = {"cuda": CudaGraphs}


def _watch(mode: int | str) -> None:
    """torch's watch for waits, of the whole process; it says of itself, once, that it is young."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ss]ynchronization debug mode")
        torch.cuda.set_sync_debug_mode(mode)
