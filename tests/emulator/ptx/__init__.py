"""A PTX emulator: runs the compiled PTX of Triton and nvcc on the CPU, and checks what it does.

It finds results, accesses out of bounds, misaligned or racing, and counts bytes and instructions.
It is no GPU: it says nothing of time, and its tensor cores and approximations round in their own
way within what PTX's manual allows.
"""

from tests.emulator.ptx.errors import PtxError
from tests.emulator.ptx.launch import Struct, run
from tests.emulator.ptx.machine import Stats
from tests.emulator.ptx.program import entries

__all__ = ["PtxError", "Stats", "Struct", "entries", "run"]
