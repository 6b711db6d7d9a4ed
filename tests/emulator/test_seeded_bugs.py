"""Bugs put into the kernels on purpose, each caught by the rung that is named for it.

docs/gpu.md has the table. Barriers are removed from the compiled PTX one at a time: each removal is
a race in the emulator, or stands in HARMLESS with the reason.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import make
from tolerance import bits

from fastadv import reference

pytest.importorskip("triton")
from fastadv.kernels import digest, step, tiles, universal
from tests.emulator.device import emulated
from tests.emulator.mutants import barriers, entry, mutated, without_barrier
from tests.emulator.ptx import PtxError

LONG = tiles.HELD + 16
OUT_OF_BOUNDS, RACE, BITS = "out of bounds", "race", "other bits than the reference"

BUGS = [
    ("step_linf.py", "mask = offsets < total", "mask = offsets <= total", "linf", OUT_OF_BOUNDS),
    ("step_linf.py", "start + BLOCK <= total", "start <= total", "linf", OUT_OF_BOUNDS),
    ("step_linf.py", "placed, mask=mask)", "placed)", "linf", OUT_OF_BOUNDS),
    ("arithmetic.py", "clamp(clamp(v, low, high), lower, upper)",
     "clamp(clamp(v, lower, upper), low, high)", "linf", BITS),
    ("arithmetic.py", "inside = clamp(clamp(v, low, high), lower, upper)",
     "inside = clamp(v, low, high)", "linf", BITS),
    ("arithmetic.py", "tl.where(overshot, next_against(total, total, b), total)", "total", "linf",
     BITS),
    ("step_l2.py", "mask = lanes < size", "mask = lanes <= size", "l2", OUT_OF_BOUNDS),
    ("step_l1.py", "mask = lanes < size", "mask = lanes <= size", "l1", OUT_OF_BOUNDS),
    ("step_l2.py", "tl.program_id(0).to(tl.int64)", "tl.program_id(0).to(tl.int64) * 0", "l2",
     RACE),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "norm", "rung"), BUGS)
def test_seeded_bugs_are_caught(tmp_path, file, old, new, norm, rung):
    case = make((3, 601), torch.float32, "one")
    case.x[0, :300] -= 0.5  # beyond the box, where ball and box do not commute
    args = case.args()
    with mutated(tmp_path, file, old, new) as load:
        function = getattr(load("step"), f"step_{norm}_")
        more = (0.2,) if norm == "l1" else ()
        if rung == BITS:
            with emulated():
                function(*args, True, *more)
            expected = case.args()
            getattr(reference, f"step_{norm}_")(*expected, True, *more)
            assert not torch.equal(bits(args[0]), bits(expected[0]))
        else:
            with emulated(), pytest.raises(PtxError, match=rung):
                function(*args, True, *more)


def extreme(shape: tuple[int, int], norm: str) -> list[Callable[[], torch.Tensor]]:
    """Steps on every path: plain gradients, ones too small to divide by, steps that cancel."""
    more = (0.2,) if norm == "l1" else ()
    calls = []
    for scale in (1.0, 1e-36):
        case = make(shape, torch.float32, "one", radius=2.0)
        case.grad *= scale

        def call(case=case) -> torch.Tensor:
            args = case.args()
            getattr(step, f"step_{norm}_")(*args, True, *more)
            return args[0]

        calls.append(call)
    cancelled = make(shape, torch.float32, "one", radius=2.0)  # v is what d and the step leave
    d = cancelled.x_adv - cancelled.x
    cancelled.grad, cancelled.step_size = -d, d.double().norm(dim=1).float()

    def cancel() -> torch.Tensor:
        args = cancelled.args()
        getattr(step, f"step_{norm}_")(*args, True, *more)
        return args[0]

    return [*calls, cancel]


def universal_step() -> torch.Tensor:
    grads = torch.randn(70, 600, generator=torch.Generator().manual_seed(0))
    delta, velocity = torch.zeros(600), torch.zeros(600)
    universal.universal_linf_(
        delta, velocity, grads, None, torch.tensor(0.1), torch.tensor(0.3), 0.9, False, True
    )
    return delta


CALLS: dict[str, list[Callable[[], torch.Tensor]]] = {
    "l2": extreme((1, 1200), "l2"),
    "l1": extreme((1, 1200), "l1")[:2],
    "l2 few": extreme((1, LONG), "l2"),
    "l2 many": extreme((2, LONG), "l2"),
    "l1 long": extreme((1, LONG), "l1")[:2],
    "digest": [lambda: digest.digest(torch.rand(1, 5000))],
    "universal": [universal_step],
}
HARMLESS: dict[tuple[str, str, int], str] = {}


def caught(
    call: Callable[[], torch.Tensor], edit: Callable[[str], str], right: torch.Tensor
) -> bool:
    try:
        with emulated(edit=edit):
            return not torch.equal(call(), right)
    except PtxError:
        return True


@pytest.mark.parametrize("name", CALLS)
def test_every_removed_barrier_is_caught(name, monkeypatch):
    if name == "l2 many":  # two samples in place of 64 take the same path
        monkeypatch.setattr(tiles, "FEW_SAMPLES", 2)
    found: dict[str, str] = {}

    def note(ptx: str) -> str:
        return found.setdefault(entry(ptx), ptx)

    rights = []
    for call in CALLS[name]:
        with emulated(edit=note):
            rights.append(call())
    missed = [
        (name, kernel, i)
        for kernel, ptx in found.items()
        for i in range(barriers(ptx))
        if not any(
            caught(call, without_barrier(kernel, i), right)
            for call, right in zip(CALLS[name], rights, strict=True)
        )
    ]
    assert missed == [key for key in HARMLESS if key[0] == name]
    assert sum(map(barriers, found.values())) > 0


def test_the_mutants_without_a_bug_pass(tmp_path):
    """What the seeded bugs are measured against."""
    case = make((3, 601), torch.float32, "one")
    args, expected = case.args(), case.args()
    text = "offsets < total"
    with mutated(tmp_path, "step_linf.py", text, text) as load, emulated() as device:
        load("step").step_linf_(*args, True)
    reference.step_linf_(*expected, True)
    assert torch.equal(bits(args[0]), bits(expected[0]))
    assert len(device.launches) == 1
