"""A driver for Triton whose device is the PTX emulator: launchers run on CPU tensors as they are.

Triton's own runtime binds the arguments, specialises, compiles for the architecture with its own
ptxas, checks shared memory against the limit, and launches; only the launch goes to the emulator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from bench.aot import CACHE
from bench.machine_code import SHARED_LIMIT
from tests.emulator.ptx import Stats, run

Edit = Callable[[str], str]


@dataclass(frozen=True)
class Binary:
    ptx: str
    shared: int


@dataclass
class Launch:
    """One launch: its kernel's name, grid and threads, and what the emulator counted."""

    name: str
    grid: tuple[int, int, int]
    threads: int
    args: tuple[Any, ...]
    stats: Stats


class Moved(NamedTuple):
    """Bytes; narrow: those of both that moved in accesses below 128 bits."""

    loaded: int
    stored: int
    narrow: int


@dataclass
class Device:
    """`edit`: changes the PTX before it runs, to seed a bug. `lanes`: threads at once."""

    arch: int
    edit: Edit = str
    lanes: int = 16384
    races: bool = True
    launches: list[Launch] = field(default_factory=list)

    def moved(self, tensor: torch.Tensor) -> Moved:
        """What all launches moved of a tensor that they were given."""
        total = Moved(0, 0, 0)
        for launch in self.launches:
            for i, argument in enumerate(launch.args):
                if isinstance(argument, torch.Tensor) and argument.data_ptr() == tensor.data_ptr():
                    s = launch.stats
                    total = Moved(total.loaded + s.loaded[i], total.stored + s.stored[i],
                                  total.narrow + s.narrow[i])  # fmt: skip
        return total


class _Utils:
    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def get_device_properties(self, device: int) -> dict[str, int]:
        limit = SHARED_LIMIT[self.driver.device.arch]
        return {"max_shared_mem": limit, "multiprocessor_count": 108, "warpSize": 32}

    def load_binary(
        self, name: str, cubin: bytes, shared: int, device: int
    ) -> tuple[str, Binary, int, int, int]:
        assert self.driver.loading is not None
        return name, Binary(self.driver.loading.read_text(), shared), 0, 0, 1024

    def unload_module(self, module: str) -> None: ...


class _Launcher:
    """Called by Triton's runtime with everything that a CUDA launch gets."""

    def __init__(self, driver: Driver, source: Any, metadata: Any) -> None:
        self.driver, self.metadata = driver, metadata
        self.passed = [kind != "constexpr" for kind in source.signature.values()]

    def __call__(
        self, x: int, y: int, z: int, stream: int, function: Binary, packed: Any, launch: Any,
        enter: Any, leave: Any, *args: Any,
    ) -> None:  # fmt: skip
        device, threads = self.driver.device, 32 * self.metadata.num_warps
        given = tuple(a for a, passed in zip(args, self.passed, strict=True) if passed)
        stats = run(
            device.edit(function.ptx), given, (x, y, z), threads, shared_bytes=function.shared,
            lanes=device.lanes, races=device.races,
        )  # fmt: skip
        device.launches.append(Launch(self.metadata.name, (x, y, z), threads, given, stats))


class Driver(DriverBase):  # type: ignore[misc]
    def __init__(self, device: Device) -> None:
        self.device = device
        self.utils = _Utils(self)
        self.loading: Path | None = None

    def launcher_cls(self, source: Any, metadata: Any) -> _Launcher:
        return _Launcher(self, source, metadata)

    def note(self, module: Any, function: Any, name: str, files: dict[str, Any], key: str) -> None:
        """Triton's hook before a kernel is loaded: where its PTX stands."""
        self.loading = next(Path(p) for file, p in files.items() if file.endswith(".ptx"))

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.device.arch, 32)

    def get_current_device(self) -> int:
        return self.device.arch  # Triton keeps compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def set_current_device(self, device: int) -> None: ...

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError("the emulator measures no time")


_loaded: dict[int, Driver] = {}  # a kernel that Triton has loaded keeps its driver


@contextmanager
def emulated(arch: int = 80, **options: Any) -> Iterator[Device]:
    """Launches of Triton kernels run in the emulator, compiled for sm_<arch>."""
    device = Device(arch, **options)
    driver = _loaded.setdefault(arch, Driver(device))
    driver.device = device
    knobs = triton.knobs
    with knobs.runtime.scope(), knobs.cache.scope():
        knobs.cache.dir = str(CACHE)
        knobs.runtime.kernel_load_start_hook.add(driver.note)
        before = triton.runtime.driver._active
        triton.runtime.driver.set_active(driver)
        try:
            yield device
        finally:
            triton.runtime.driver._active = before
            knobs.runtime.kernel_load_start_hook.remove(driver.note)
