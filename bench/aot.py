"""Ahead-of-time compilation: kernels to machine code without a device.

Compiling ahead of time checks no limit of shared memory: `Code.fits` does. What is compiled is kept
in build/triton and build/cuda.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.machine_code import Code, read_amd, read_cubin
from fastadv.kernels.variants import Variant

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build" / "triton"
ARCHES: tuple[int | str, ...] = (80, 90, 100, "gfx942")


def target(arch: int | str) -> GPUTarget:
    return GPUTarget("hip", arch, 64) if isinstance(arch, str) else GPUTarget("cuda", arch, 32)


def compiled(variant: Variant, arch: int | str) -> Any:
    """Triton's CompiledKernel of a variant, from the cache where it stands there."""
    kernel = variant.kernel
    names = kernel.arg_names
    signature = {n: "constexpr" if n in variant.constants else variant.signature[n] for n in names}
    constants = {(names.index(n),): value for n, value in variant.constants.items()}
    divisible = {
        (i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in variant.divisible
    }
    source = ASTSource(kernel, signature, constexprs=constants, attrs=divisible)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(CACHE)
        return triton.compile(source, target=target(arch), options=variant.options)


def code_of(variant: Variant, arch: int | str) -> Code:
    """A variant's machine code, read."""
    kernel = compiled(variant, arch)
    threads, shared = kernel.metadata.num_warps * kernel.metadata.warp_size, kernel.metadata.shared
    if isinstance(arch, str):
        return read_amd(variant.name, arch, threads, shared, kernel.asm["amdgcn"])
    (code,) = read_cubin(kernel.asm["cubin"], arch, {kernel.metadata.name: threads})
    return replace(code, name=variant.name, shared=shared)


def nvcc() -> str | None:
    """CUDA's compiler, where it is installed."""
    return shutil.which("nvcc") or next(
        (str(p) for p in Path("/usr/local").glob("cuda*/bin/nvcc")), None
    )


def nvcc_version() -> str:
    """As in "nvcc 13.0"."""
    compiler = nvcc()
    if compiler is None:
        raise FileNotFoundError("nvcc is not installed")
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    return "nvcc " + said.stdout.split("release ")[1].split(",")[0]


def compile_cuda(source: Path, arch: int, kind: str, *options: str) -> Path:
    """A .cu file compiled to `kind`, "ptx" or "cubin", in build/cuda, anew where it is older."""
    compiler = nvcc()
    if compiler is None:
        raise FileNotFoundError("nvcc is not installed")
    result = ROOT / "build" / "cuda" / f"{source.stem}.sm_{arch}.{kind}"
    newest = max(p.stat().st_mtime for p in [*ROOT.glob("csrc/**/*"), source])
    if not result.exists() or result.stat().st_mtime < newest:
        result.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [compiler, f"-{kind}", f"-arch=sm_{arch}", "-O3", "-std=c++17", "--fmad=false",
             f"-I{ROOT / 'csrc'}", *options, "-o", str(result), str(source)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    return result
