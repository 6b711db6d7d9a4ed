"""csrc/cuda compiled as plain C++ on fibers (shim.h, fibers.cpp); its ops called on CPU tensors.

No GPU takes part. What this shows is that the kernels' own C++, every index, mask and barrier of
it, gives the right numbers in three schedules, and what the sanitizers say of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastadv.reference import compute_dtype

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
OPS = ("linf", "l2", "l1", "universal", "head", "small")
ORDERS = ("forward", "reverse", "random")
NORMS = ("linf", "l2", "l1")
COMPILER = os.environ.get("CXX") or shutil.which("g++")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # as csrc/args.h counts them

_FLAGS = (
    "-std=c++20", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror",
    "-Wno-unknown-pragmas", "-Wno-pass-failed", "-DFASTADV_SHIM", f"-I{HERE}",
)  # fmt: skip
# Of UBSan the checks of what these kernels could do wrong: all of them double the compile time.
_UNDEFINED = "alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero,return"
SANITIZERS = {
    "plain": (),
    "asan": ("-O0", f"-fsanitize=address,{_UNDEFINED}", "-fno-sanitize-recover=all"),
    "tsan": ("-fsanitize=thread",),
}


class Found(Exception):
    """A sanitizer, or the shim itself, stopped a kernel; the message is its report."""


def compile_one(source: Path, target: Path, *flags: str) -> Path:
    assert COMPILER is not None
    command = [COMPILER, *_FLAGS, *flags, "-x", "c++", "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def build(
    folder: Path,
    sanitizer: str,
    ops: tuple[str, ...] = OPS,
    csrc: Path = CSRC,
    shared: Path | None = None,
) -> Path:
    """The driver with the launchers of `ops` in `csrc`, under one of SANITIZERS.

    `shared` keeps what does not depend on `csrc` for the next build.
    """
    assert COMPILER is not None
    flags = SANITIZERS[sanitizer]
    shared = shared or folder
    folder.mkdir(parents=True, exist_ok=True)
    fibers, driver = (shared / f"{name}_{sanitizer}.o" for name in ("fibers", "driver"))
    if not driver.exists():
        shared.mkdir(parents=True, exist_ok=True)
        # The scheduler has no sanitizer in it: its first lines say why.
        compile_one(HERE / "fibers.cpp", fibers, f"-DFASTADV_{sanitizer.upper()}")
        compile_one(HERE / "driver.cpp", driver, *flags)
    objects = [driver, fibers]
    for op in ops:
        source = csrc / "cuda" / f"launch_{op}.cu"
        objects.append(compile_one(source, folder / f"{op}.o", *flags))
    link = [] if ops == OPS else ["-Wl,--unresolved-symbols=ignore-in-object-files"]
    binary = folder / "run"
    subprocess.run([COMPILER, *flags, *map(str, objects), *link, "-o", str(binary)], check=True)
    return binary


@dataclass(frozen=True)
class Shim:
    """The ops of torch.ops.fastadv by csrc/cuda on fibers; what they update is updated in place.

    `shift`: bytes by which every array begins off an address that 16 divides.
    """

    driver: Path
    folder: Path
    order: str = "forward"
    shift: int = 0

    def ordered(self, order: str) -> Shim:
        return replace(self, order=order)

    def call(self, arrays: dict[str, Tensor | None], **numbers: object) -> None:
        given = {name: t for name, t in arrays.items() if t is not None}
        for name, t in given.items():
            _memory(t).numpy().tofile(self.folder / name)
        words = [f"{name}={self.folder / name}" for name in given]
        words += [f"{k}={int(v) if isinstance(v, bool) else v}" for k, v in numbers.items()]
        command = [str(self.driver), f"order={self.order}", f"shift={self.shift}", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Found(done.stderr)
        for name, t in given.items():
            memory = _memory(t)
            written = np.fromfile(self.folder / name, dtype=memory.numpy().dtype)
            memory.copy_(torch.from_numpy(written))

    def step(
        self, norm: str, x_adv: Tensor, grad: Tensor, x: Tensor, step_size: Tensor, radius: Tensor,
        bounds: Tensor | None, steepest: bool, top: float = 1.0,
    ) -> None:  # fmt: skip
        last = not x.is_contiguous()
        box = {} if bounds is None else {"lower": bounds[0].clone(), "upper": bounds[1].clone()}
        arrays = {"x_adv": x_adv, "grad": grad, "x": x, "step_size": step_size, "radius": radius}
        self.call(
            arrays | box, op="step", norm=NORMS.index(norm), dtype=DTYPES.index(x.dtype),
            samples=len(x), size=x[0].numel(), steepest=steepest, top=top,
            step_stride=min(step_size.dim(), 1), radius_stride=min(radius.dim(), 1),
            channels=bounds.shape[1] if bounds is not None and bounds.dim() == 2 else 1,
            inner=1 if last or x.dim() < 2 else x[0, 0].numel(),
        )  # fmt: skip

    def universal(
        self, norm: str, delta: Tensor, velocity: Tensor | None, grads: Tensor,
        weights: Tensor | None, step_size: Tensor, radius: Tensor, momentum: float, signs: bool,
        steepest: bool, top: float = 1.0,
    ) -> None:  # fmt: skip
        arrays = {
            "delta": delta, "velocity": velocity, "grads": grads, "weights": weights,
            "step_size": step_size, "radius": radius,
        }  # fmt: skip
        self.call(
            arrays, op="universal", norm=NORMS.index(norm), dtype=DTYPES.index(grads.dtype),
            samples=len(grads), size=delta.numel(), momentum=momentum, signs=signs,
            steepest=steepest, top=top,
        )  # fmt: skip

    def head(
        self, logits: Tensor, y: Tensor, target: Tensor | None, head: int, targeted: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        loss = torch.full((len(logits),), torch.nan, dtype=compute_dtype(logits.dtype))
        grad = torch.full_like(logits, torch.nan)
        labels = head == 1
        prediction = torch.full_like(logits, 7, dtype=torch.uint8) if labels else None
        index = torch.full((len(logits),), -1)
        arrays = {
            "logits": logits, "y": y, "target": target, "loss": loss, "grad": grad,
            "prediction": prediction if labels else index,
        }  # fmt: skip
        self.call(
            arrays, op="head", head=head, dtype=DTYPES.index(logits.dtype), targeted=targeted,
            samples=len(logits), classes=logits.shape[1],
        )  # fmt: skip
        return loss, grad, prediction.bool() if prediction is not None else index

    def digest(self, x: Tensor) -> Tensor:
        digest = torch.zeros(len(x), dtype=torch.long)
        dtype = DTYPES.index(x.dtype)
        arrays: dict[str, Tensor | None] = {"x": x, "digest": digest}
        self.call(arrays, op="digest", dtype=dtype, samples=len(x), size=x[0].numel())
        return digest

    def uniform(self, x: Tensor, seed: int, offset: int, stream: int) -> Tensor:
        out = torch.full(x.shape, torch.nan, dtype=compute_dtype(x.dtype))
        self.call(
            {"out": out}, op="uniform", dtype=DTYPES.index(out.dtype), samples=len(x),
            size=x[0].numel(), seed=seed, offset=offset, stream=stream,
        )  # fmt: skip
        return out


def _memory(t: Tensor) -> Tensor:
    """The tensor's numbers in the order of memory, as integers where NumPy has no such dtype."""
    flat = t.as_strided((t.numel(),), (1,))
    return flat.view(torch.int16) if t.dtype == torch.bfloat16 else flat
