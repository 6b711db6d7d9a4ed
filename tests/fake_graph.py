"""A CPU in the place of a CUDA device: streams that do nothing, and graphs that really replay.

A capture records every op that reaches the dispatcher, with the tensors that it was given; a replay
runs them again, into the same memory. What a device's capture forbids raises: reading on the host,
sizes that depend on the data, numbers brought from the host. As on a device a capture computes
nothing: what it wrote elsewhere is put back, and its own memory is filled with NaN, which any
result that was kept instead of computed again would show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from no_sync import NoSync
from torch import Tensor
from torch.utils._pytree import tree_flatten


@dataclass
class Call:
    """One recorded op: what it was given, and the memory that its results have."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: list[Tensor]  # those in memory of their own


def storage_of(t: Tensor) -> int:
    return int(t.untyped_storage()._cdata)


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


class Recorder(NoSync):
    """Records what runs under it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.own: dict[int, Tensor] = {}  # by storage: the graph's own memory
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # what stood in others' memory

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = {storage_of(t) for t in tensors_of((args, kwargs))}
        for t in self._written(func, args, kwargs):
            if storage_of(t) not in self.own and storage_of(t) not in self.before:
                flat = torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())
                self.before[storage_of(t)] = flat, flat.clone()
        result = super().__torch_dispatch__(func, types, args, kwargs)
        fresh = [t for t in tensors_of(result) if storage_of(t) not in given]
        for t in fresh:
            self.own[storage_of(t)] = t
        self.calls.append(Call(func, args, kwargs, fresh))
        return result

    @staticmethod
    def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        written = []
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                written += tensors_of(value)
        return written

    def undo(self) -> None:
        """As if nothing had been computed."""
        for flat, value in self.before.values():
            flat.copy_(value)
        for t in self.own.values():
            flat = torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage())
            flat.fill_(255)  # NaN, -1, True

    def replay(self) -> None:
        with torch.no_grad():
            for call in self.calls:
                if not call.results and not call.func._schema.is_mutable:
                    continue  # a view: it is where it was
                again = tensors_of(call.func(*call.args, **call.kwargs))
                again = again[len(again) - len(call.results) :] if call.results else []
                for t, new in zip(call.results, again, strict=True):
                    assert (t.shape, t.stride(), t.dtype) == (new.shape, new.stride(), new.dtype)
                    t.copy_(new)


@dataclass
class FakeGraphs:
    """fastadv.engine.cuda_graph.Graphs on the CPU; `log` says what was asked of it."""

    device: torch.device
    log: list[str] = field(default_factory=list)
    inside: bool = False

    def rehearse(self, run: Callable[[], None]) -> None:
        self.log.append("rehearse")
        with NoSync():
            run()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.log.append("capture")
        recorder = Recorder()
        state = torch.get_rng_state()
        with recorder:
            run()
        recorder.undo()
        torch.set_rng_state(state)

        def replay() -> None:
            assert self.inside, "a replay must wait for the one before, on whatever stream"
            self.log.append("replay")
            recorder.replay()

        return replay

    def random_state(self) -> Tensor:
        return torch.get_rng_state()

    def set_random_state(self, state: Tensor) -> None:
        torch.set_rng_state(state)

    def enter(self) -> None:
        self.inside = True

    def leave(self) -> None:
        self.inside = False

    def synchronise(self) -> None:
        self.log.append("synchronise")
