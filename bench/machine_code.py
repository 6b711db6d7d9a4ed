"""What machine code shows: registers, spills, widths of accesses, tensor cores, barriers.

NVIDIA's is read with nvdisasm and cuobjdump, which Triton's wheel carries; AMD's as assembly text.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import triton

SHARED_LIMIT: dict[int | str, int] = {80: 166912, 90: 232448, 100: 232448, "gfx942": 65536}
REGISTERS, BLOCKS = 65536, 32  # of a multiprocessor, on all three NVIDIA architectures
THREADS = {80: 2048, 90: 2048, 100: 2048}

_ACCESS = re.compile(r"\b(LDG|STG|LDGSTS|LDL|STL)((?:\.[\w]+)*)")
_WIDTHS = {"U8": 8, "S8": 8, "U16": 16, "S16": 16, "64": 64, "128": 128, "256": 256}
_BRANCH = re.compile(r"\bBRA\b[^;]*?`\((\.L_\w+)\)")
_ENDS = re.compile(r"\b(?:BRA|EXIT|RET)\b")
_LEAVES = re.compile(r"^\s*(?:/\*\w+\*/)?\s*(?:BRA|EXIT|RET)\b")  # without a condition
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
    loops: bool = False  # whether a loop repeats a global access

    @property
    def fits(self) -> bool:
        """Whether a block's shared memory is within the architecture's limit."""
        return self.shared <= SHARED_LIMIT[self.arch]

    @property
    def bytes_of_tile(self) -> int:
        """What one program's 128-bit accesses move: a whole tile's; 0 where a loop repeats them."""
        return 0 if self.loops else 16 * self.threads * (self.loads[128] + self.stores[128])

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
        tensor=Counter(_TENSOR.findall(sass)), loops=repeats_accesses(sass),
    )  # fmt: skip


def repeats_accesses(sass: str) -> bool:
    """Whether a global access lies on a cycle of the control flow."""
    blocks: list[tuple[str, list[str]]] = [("", [])]
    for line in filter(str.strip, sass.splitlines()):
        label = re.match(r"\s*(\.L_\w+):", line)
        if label or _ENDS.search(blocks[-1][1][-1] if blocks[-1][1] else ""):
            blocks.append((label[1] if label else "", []))
        if not label:
            blocks[-1][1].append(line)
    index = {name: i for i, (name, _) in enumerate(blocks) if name}
    after: list[set[int]] = []
    for i, (_, lines) in enumerate(blocks):
        last = lines[-1] if lines else ""
        to = {index[t] for t in _BRANCH.findall(last) if t in index}
        if not _LEAVES.search(last):
            to.add(i + 1)
        after.append(to)
    return any(
        _ACCESS.search(line) and "LDL" not in line and "STL" not in line and _returns(after, i)
        for i, (_, lines) in enumerate(blocks)
        for line in lines
    )


def _returns(after: list[set[int]], start: int) -> bool:
    """Whether a block can be reached from itself."""
    seen: set[int] = set()
    ahead = list(after[start])
    while ahead:
        block = ahead.pop()
        if block not in seen and block < len(after):
            seen.add(block)
            ahead.extend(after[block])
    return start in seen


def read_amd(name: str, arch: str, threads: int, shared: int, text: str) -> Code:
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
