"""What a CUDA stream's capture forbids, and any loop on a device should not do, seen on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# Each has the host wait for the device, or takes sizes from the data.
READS = {
    aten._local_scalar_dense.default: "reads a number on the host: .item(), bool(), float()",
    aten.is_nonzero.default: "reads a truth value on the host",
    aten.equal.default: "compares on the host: torch.equal",
    aten.allclose.default: "compares on the host",
    aten.nonzero.default: "has a size that depends on the data: nonzero",
    aten.masked_select.default: "has a size that depends on the data: masked_select",
    aten._unique2.default: "has a size that depends on the data: unique",
    aten.repeat_interleave.Tensor: "has a size that depends on the data: repeat_interleave",
    aten.bincount.default: "has a size that depends on the data: bincount",
}
HOST = {
    aten.lift_fresh.default: "brings numbers from the host: torch.tensor, new_tensor, a list index",
    aten.lift_fresh_copy.default: "brings numbers from the host",
}


class Forbidden(RuntimeError):
    """A call that waits for the device."""


def why(func: Any, args: tuple[Any, ...]) -> str | None:
    """What is wrong with a call on a device, or None."""
    if func in READS:
        return READS[func]
    if func in HOST:
        return HOST[func]
    if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default) and any(
        isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
    ):
        return "has a size that depends on the data: an index of booleans"
    return None


class NoSync(TorchDispatchMode):
    """Raises Forbidden at a call that waits for the device, or `log`s it where one is given.

    .tolist() and .numpy() read memory without a dispatch on the CPU, so they are watched apart.
    """

    METHODS = ("tolist", "numpy", "__array__")

    def __init__(self, log: list[str] | None = None) -> None:
        super().__init__()
        self.log = log

    def forbid(self, what: str) -> None:
        if self.log is None:
            raise Forbidden(what)
        self.log.append(what)

    def __enter__(self) -> Any:
        self._kept = {name: getattr(Tensor, name) for name in self.METHODS}
        for name in self.METHODS:

            def read(t: Tensor, *args: Any, name: str = name, **kwargs: Any) -> Any:
                self.forbid(f"reads on the host: .{name}()")
                return self._kept[name](t, *args, **kwargs)

            setattr(Tensor, name, read)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for name, method in self._kept.items():
            setattr(Tensor, name, method)
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if (what := why(func, args)) is not None:
            self.forbid(f"{func} {what}")
        return func(*args, **(kwargs or {}))

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled functions run compiled under it, and it sees what they call."""
        return True
