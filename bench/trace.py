"""What a chain of eager torch ops launches and moves: a kernel an op, inputs read, outputs written.

A trace of the dispatcher, on CPU tensors: views launch nothing, an op that only allocates nothing
either. On CUDA the same ops are dispatched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ALLOCATE = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")
_SAME = ("detach", "alias", "lift_fresh", "_unsafe_view")


@dataclass
class Trace:
    """kernels: names, in order. moved: bytes."""

    kernels: list[str] = field(default_factory=list)
    moved: int = 0


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = trace

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not func.is_view and name not in (*_ALLOCATE, *_SAME):
            self.trace.kernels.append(name)
            read = () if name.endswith("_like") else (args, kwargs)
            tensors = [t for t in tree_leaves((read, result)) if isinstance(t, Tensor) and t.dim()]
            self.trace.moved += sum(t.numel() * t.element_size() for t in tensors)
        return result


def traced(call: Callable[[], object]) -> Trace:
    """The trace of one call."""
    trace = Trace()
    with _Recorder(trace):
        call()
    return trace
