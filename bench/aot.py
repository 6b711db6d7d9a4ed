"""Ahead-of-time compilation: kernels to machine code without a device, and what that code shows.

Triton's wheel carries ptxas, cuobjdump and nvdisasm. Compiling ahead of time checks no limit of
shared memory: `Code.fits` does. Compiled kernels are kept in build/triton.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastadv.kernels.variants import Variant

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build" / "triton"
ARCHES: tuple[int | str, ...] = (80, 90, 100, "gfx942")
SHARED_LIMIT: dict[int | str, int] = {80: 166912, 90: 232448, 100: 232448, "gfx942": 65536}
REGISTERS, BLOCKS = 65536, 32  # of a multiprocessor, on all three NVIDIA architectures
THREADS = {80: 2048, 90: 2048, 100: 2048}

_ACCESS = re.compile(r"\b(LDG|STG|LDGSTS|LDL|STL)((?:\.[\w]+)*)")
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}
_TENSOR = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA|v_mfma)\w*")
_AMD = re.compile(r"\b(?:global|buffer|flat)_(load|store)_(\w+)")
_AMD_WIDTHS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "ushort": 16,
               "short": 16, "ubyte": 8, "byte": 8}  # fmt: skip


@dataclass(frozen=True)
class Code:
    """What a kernel's machine code shows.

    loads, stores: global accesses by bits, as they stand in the code. spills: accesses to local
    memory. tensor: instructions of the tensor cores by name. shared: bytes of a block.
    """

    name: str
    arch: int | str
    threads: int
    registers: int
    stack: int
    spills: int
    shared: int
    barriers: int
    loads: Counter[int] = field(default_factory=Counter)
    stores: Counter[int] = field(default_factory=Counter)
    tensor: Counter[str] = field(default_factory=Counter)
    ptx: str = field(default="", repr=False)

    @property
    def fits(self) -> bool:
        """Whether a block's shared memory is within the architecture's limit."""
        return self.shared <= SHARED_LIMIT[self.arch]

    @property
    def occupancy(self) -> float:
        """The share of a multiprocessor's threads that registers and shared memory leave."""
        if not isinstance(self.arch, int):
            return 0.0
        warps = -(-self.threads // 32)
        each = -(-self.registers * 32 // 256) * 256  # registers are given to a warp by 256
        by_registers = REGISTERS // each // warps if each else BLOCKS
        room = SHARED_LIMIT[self.arch] + 1024  # every block takes 1 KiB for itself
        by_shared = room // (self.shared + 1024)
        most = THREADS[self.arch]
        blocks = min(BLOCKS, most // self.threads, by_registers, by_shared)
        return blocks * self.threads / most


def tool(name: str) -> str:
    """One of the programs in Triton's wheel."""
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


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


@lru_cache(maxsize=512)
def _codes(variant: str, arch: int | str) -> Code:
    found = next(v for v in _variants() if v.name == variant)
    kernel = compiled(found, arch)
    threads = kernel.metadata.num_warps * kernel.metadata.warp_size
    if isinstance(arch, str):
        return _amd(variant, arch, threads, kernel.metadata.shared, kernel.asm["amdgcn"])
    (code,) = read_cubin(kernel.asm["cubin"], arch, {kernel.metadata.name: threads})
    return replaced(code, name=variant, shared=kernel.metadata.shared, ptx=kernel.asm["ptx"])


def _variants() -> list[Variant]:
    from fastadv.kernels.variants import variants

    return variants()


def code_of(variant: Variant, arch: int | str) -> Code:
    """A variant's machine code, read."""
    return _codes(variant.name, arch)


def replaced(code: Code, **changes: Any) -> Code:
    return Code(**{**code.__dict__, **changes})


def read_cubin(cubin: bytes, arch: int, threads: dict[str, int]) -> list[Code]:
    """Every kernel of a cubin. `threads`: of a block, by kernel; 1024 where it is not known."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        sass = _output(tool("nvdisasm"), "-c", file.name)
        usage = _output(tool("cuobjdump"), "-res-usage", file.name)
    bodies = dict(
        re.findall(r"\.section\s+\.text\.(\S+?),(.*?)(?=\.section\s+\.text\.|\Z)", sass, re.S)
    )
    numbers = re.compile(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
    return [
        _nvidia(
            name, arch, threads.get(name, 1024), int(regs), int(stack), int(shared), bodies[name]
        )
        for name, regs, stack, shared, _ in numbers.findall(usage)
    ]


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _nvidia(
    name: str, arch: int, threads: int, registers: int, stack: int, shared: int, sass: str
) -> Code:
    loads: Counter[int] = Counter()
    stores: Counter[int] = Counter()
    spills = 0
    for operation, modifiers in _ACCESS.findall(sass):
        width = next((_WIDTHS[m] for m in modifiers.split(".") if m in _WIDTHS), 32)
        if operation in ("LDL", "STL"):
            spills += 1
        else:
            (stores if operation == "STG" else loads)[width] += 1
    return Code(
        name, arch, threads, registers, stack, spills, shared,
        barriers=len(re.findall(r"\bBAR\.", sass)), loads=loads, stores=stores,
        tensor=Counter(_TENSOR.findall(sass)),
    )  # fmt: skip


def _amd(name: str, arch: str, threads: int, shared: int, text: str) -> Code:
    loads: Counter[int] = Counter()
    stores: Counter[int] = Counter()
    for operation, width in _AMD.findall(text):
        bits = next((b for w, b in _AMD_WIDTHS.items() if width.startswith(w)), 32)
        (loads if operation == "load" else stores)[bits] += 1

    def number(key: str) -> int:
        return int(re.findall(rf"\.{key}:\s+(\d+)", text)[0])

    return Code(
        name, arch, threads, number("vgpr_count"), number("private_segment_fixed_size"),
        number("vgpr_spill_count"), shared, len(re.findall(r"\bs_barrier\b", text)), loads, stores,
        Counter(_TENSOR.findall(text)),
    )  # fmt: skip


def nvcc() -> str | None:
    """CUDA's compiler, where it is installed."""
    return shutil.which("nvcc") or next(
        (str(p) for p in Path("/usr/local").glob("cuda*/bin/nvcc")), None
    )


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
