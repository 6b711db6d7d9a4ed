"""Launches and bytes of each op, of fastadv's and of eager torch's chain, and their time at the
bandwidth of a datasheet.

fastadv's launchers run in the PTX emulator on a smaller batch that takes the same path, and their
bytes are scaled to the named shape; the chains that torchattacks writes (bench/peers.py) are
counted from a trace of the dispatcher (bench/trace.py). A launch's own time is left out on both
sides. No row was measured on a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from bench import peers
from bench.trace import traced
from bench.universal import eager_linf
from fastadv.kernels import digest, head, step, uniform, universal
from tests.emulator.device import emulated

# GB/s of memory: NVIDIA A100 80GB SXM, H100 SXM, B200 (HGX) and AMD MI300X datasheets.
BANDWIDTH = {"a100": 2039, "h100": 3350, "b200": 8000, "mi300x": 5300}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Call = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """bytes_element: of an element of the data (of x, of all gradients, of the logits)."""

    op: str
    shape: str
    dtype: str
    written_by: str
    launches: int
    bytes_element: float
    megabytes: float
    a100_us: float
    h100_us: float
    b200_us: float
    mi300x_us: float


@dataclass(frozen=True)
class Work:
    """One op on `counted`, a batch that the emulator can take, for `shape`."""

    op: str
    dtype: str
    shape: tuple[int, ...]
    counted: tuple[int, ...]
    ours: Call
    eager: Call | None


def rows() -> list[Row]:
    """The whole table."""
    return [row for work in works() for row in rows_of(work)]


def rows_of(work: Work) -> Iterator[Row]:
    """fastadv's row, and eager torch's where it has the op."""
    with emulated(80, races=False) as device:
        work.ours()
    stats = [launch.stats for launch in device.launches]
    moved = sum(s.loaded.total() + s.stored.total() for s in stats)
    yield _row(work, "fastadv", len(stats), moved)
    if work.eager:
        trace = traced(work.eager)
        yield _row(work, "eager torch", len(trace.kernels), trace.moved)


def _row(work: Work, written_by: str, launches: int, moved: int) -> Row:
    element = moved / math.prod(work.counted)
    total = element * math.prod(work.shape)
    times = {f"{name}_us": round(total / rate / 1e3, 2) for name, rate in BANDWIDTH.items()}
    return Row(
        work.op, "x".join(map(str, work.shape)), work.dtype, written_by, launches,
        round(element, 2), round(total / 1e6, 3), **times,
    )  # fmt: skip


def works() -> Iterator[Work]:
    images, few, small = (64, 3, 224, 224), (8, 3, 224, 224), (512, 3, 32, 32)
    for dtype in DTYPES:
        for norm in ("linf", "l2", "l1"):
            yield _step(norm, dtype, images, (64, 3, 48, 64) if norm == "l2" else (1, 3, 96, 96))
            yield _step(norm, dtype, small, (2, 3, 32, 32))
        yield _step("l2", dtype, few, (1, 3, 224, 224))
    yield _universal((64, 3, 32, 32))
    for classes in (10, 1000):
        yield _head((512, classes), 4)
    step, loss = _step("linf", "fp32", small, (4, 3, 32, 32)), _head((512, 10), 4)
    assert step.eager
    assert loss.eager
    yield Work("PGD step without the model", "fp32", small, step.counted,
               _both(loss.ours, step.ours), _both(loss.eager, step.eager))  # fmt: skip
    x = torch.rand(2, 3, 32, 32)
    yield Work("digest", "fp32", (512, 3, 32, 32), tuple(x.shape), lambda: digest.digest(x), None)
    yield Work(
        "uniform", "fp32", (512, 3, 32, 32), tuple(x.shape), lambda: uniform.uniform(x, 1, 0, 0),
        lambda: torch.rand_like(x),
    )  # fmt: skip


def _both(first: Call, second: Call) -> Call:
    def call() -> None:
        first()
        second()

    return call


def _step(norm: str, dtype: str, shape: tuple[int, ...], counted: tuple[int, ...]) -> Work:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(counted, generator=generator).to(DTYPES[dtype])
    grad = torch.randn(counted, generator=generator).to(DTYPES[dtype])
    x_adv, radius = x.clone(), {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}[norm]
    size, bounds = torch.tensor(radius / 4), torch.tensor([0.0, 1.0])
    function, more = getattr(step, f"step_{norm}_"), (0.05,) if norm == "l1" else ()

    def ours() -> None:
        function(x_adv, grad, x, size, torch.tensor(radius), bounds, True, *more)

    chain = peers.STEPS[norm].get("torchattacks")
    eager = (lambda: chain(x_adv, grad, x, radius, radius / 4)) if chain else None
    return Work(f"step_{norm}", dtype, shape, counted, ours, eager)


def _universal(shape: tuple[int, ...]) -> Work:
    grads, delta = torch.randn(shape), torch.zeros(shape[1:])
    size, radius = torch.tensor(0.01), torch.tensor(0.03)

    def ours() -> None:
        universal.universal_linf_(delta, None, grads, None, size, radius, 0.0, False, True)

    return Work("universal_linf", "fp32", shape, shape, ours,
                lambda: eager_linf(delta, grads, 0.03, 0.01))  # fmt: skip


def _head(shape: tuple[int, int], samples: int) -> Work:
    counted = (samples, shape[1])
    logits, y = torch.randn(counted), torch.zeros(samples, dtype=torch.long)

    def eager() -> tuple[Tensor, ...]:
        z = logits.detach().requires_grad_()
        return torch.autograd.grad(functional.cross_entropy(z, y), z)

    return Work("cross_entropy", "fp32", shape, counted,
                lambda: head.head(logits, y, None, 0, False), eager)  # fmt: skip
