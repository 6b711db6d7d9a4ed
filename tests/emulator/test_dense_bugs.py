"""Bugs put into the dense attack on purpose, and its barriers removed one at a time."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
import triton

from fastadv.kernels.dense_plan import Tile
from tests.emulator.dense_cases import Net, tile
from tests.emulator.device import emulated
from tests.emulator.mutants import barriers, mutated, without_barrier
from tests.emulator.ptx import PtxError

OUT_OF_BOUNDS, RACE, BITS = "out of bounds", "race", "other bits than the definition"
BUGS = [
    ("dense_step.py", "within = columns < STACK.inputs", "within = columns <= STACK.inputs", 0,
     OUT_OF_BOUNDS),
    ("dense.py", "start + local < samples", "start + local <= samples", 0, OUT_OF_BOUNDS),
    ("dense.py", "tl.program_id(0).to(tl.int64)", "tl.program_id(0).to(tl.int64) * 0", 0, RACE),
    ("dense_layers.py", "tl.where(value <= 0, 0.0, grad)", "tl.where(value < 0, 0.0, grad)", 0,
     BITS),
    ("dense_step.py", "acc = tl.dot(placed.to(w.dtype)", "acc = tl.dot(moved.to(w.dtype)", 0, BITS),
    ("dense_head.py", "z = tl.where(classes < CLASSES, z, -float(\"inf\"))", "z = z", 0, BITS),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "norm", "rung"), BUGS)
def test_seeded_bugs_are_caught(tmp_path, file, old, new, norm, rung):
    net = Net((21, 20, 33, 7), 17, norm=norm)
    with mutated(tmp_path, file, old, new) as load, tile():
        op = load("dense_launch").dense_pgd_
        if rung == BITS:
            with emulated():
                x_adv, _ = net.run(op, 3)
            assert float((x_adv != net.expected(3)[0]).double().mean()) > 0.02
        else:
            with emulated(), pytest.raises(PtxError, match=rung):
                net.run(op, 3)


# By the number in the PTX that Triton 3.9.0 writes: why nothing differs without that barrier.
UNREAD = "it ends a loop, after copies that nothing reads any more"
SAME = "in this tile's layouts a thread reads of `kept` and x_adv only what it wrote itself"
HARMLESS = {
    0: {5: UNREAD, 14: SAME, 15: SAME, 52: UNREAD},
    1: {5: UNREAD, 14: SAME, 15: SAME, 52: UNREAD, 61: SAME, 62: SAME},
}


@pytest.mark.slow
@pytest.mark.skipif(triton.__version__ != "3.9.0", reason="the list is of another Triton's code")
@pytest.mark.parametrize("norm", HARMLESS)
def test_every_removed_barrier_is_caught(norm):
    net, found = Net((21, 20, 33, 7), 16, norm=norm), []

    def note(ptx: str) -> str:
        found.append(ptx)
        return ptx

    def caught(number: int) -> bool:
        try:
            with emulated(edit=without_barrier("dense_pgd", number)):
                return not torch.equal(net.emulated(2)[0], right)
        except PtxError:
            return True

    with tile(Tile(16, 16, 16, 4)):
        with emulated(edit=note):
            right, _ = net.emulated(2)
        missed = [i for i in range(barriers(found[0])) if not caught(i)]
    assert missed == list(HARMLESS[norm])
