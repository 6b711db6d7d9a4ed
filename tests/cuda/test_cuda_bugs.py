"""Bugs put into csrc/cuda on purpose, one at a time: each is caught, by the check named beside it.

A barrier taken away is caught by ThreadSanitizer in any schedule, since it is told which accesses a
barrier orders. Every barrier of csrc/cuda is in the list, or in HARMLESS with the reason.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from cases import make
from head_cases import make as make_head
from shimmed import COMPILER, CSRC, Found, Shim, build
from tolerance import bits

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no g++")
RACE = "data race"
OUT_OF_BOUNDS = "AddressSanitizer: heap-buffer-overflow"
RESULT = "another result than the CPU's"


def step(
    norm: str, shape: tuple[int, ...], bounds: str = "one", beyond: float = 0.0
) -> Callable[[Shim], None]:
    """Runs a step in the given shape, with x beyond the box if asked; compares with the CPU's."""

    def run(shim: Shim) -> None:
        case = make(shape, torch.float32, bounds)
        case.x += beyond
        top = (0.2,) if norm == "l1" else ()
        expected, got = case.args(), case.args()
        getattr(torch.ops.fastadv, f"step_{norm}_")(*expected, True, *top)
        shim.step(norm, *got, True, *top)
        same = torch.equal(bits(got[0]), bits(expected[0]))
        if not (same if norm == "linf" else torch.allclose(got[0], expected[0], atol=1e-5)):
            raise Found(RESULT)

    return run


def universal(shim: Shim) -> None:
    g = torch.Generator().manual_seed(1)
    grads, expected, got = torch.randn(20, 33, generator=g), torch.zeros(33), torch.zeros(33)
    tail = (torch.tensor(0.1), torch.tensor(0.4), 0.0, True, False)
    torch.ops.fastadv.universal_linf_(expected, None, grads, None, *tail)
    shim.universal("linf", got, None, grads, None, *tail)
    if not torch.equal(got, expected):
        raise Found(RESULT)


def head(shim: Shim) -> None:
    case = make_head(0, False, torch.float32, 3, 10)
    case.y[2] = 10  # no class
    got, expected = shim.head(case.logits, case.y, None, 0, False), case.run()
    if not torch.allclose(got[0], expected[0], equal_nan=True):
        raise Found(RESULT)


@dataclass(frozen=True)
class Bug:
    file: str
    old: str
    new: str
    op: str  # the launcher that is compiled
    run: Callable[[Shim], None]
    sanitizer: str
    caught_by: str
    nth: int = 0  # which of several places


SYNC = "  __syncthreads();"
BUGS = {
    "no barrier before partial sums are read": Bug(
        "team.cuh", SYNC, "", "l2", step("l2", (1, 300)), "tsan", RACE
    ),
    "no barrier before partial sums are written again": Bug(
        "team.cuh", SYNC, "", "l1", step("l1", (1, 300)), "tsan", RACE, nth=1
    ),
    "no barrier after the counts are cleared": Bug(
        "step_l1.cuh", SYNC, "", "l1", step("l1", (1, 300)), "tsan", RACE
    ),
    "no barrier before the counts are read": Bug(
        "step_l1.cuh", SYNC, "", "l1", step("l1", (1, 300)), "tsan", RACE, nth=1
    ),
    "no barrier before the digit is read": Bug(
        "step_l1.cuh", SYNC, "", "l1", step("l1", (1, 300)), "tsan", RACE, nth=2
    ),
    "no barrier of the warp before the rank is written": Bug(
        "step_l1.cuh", "  __syncwarp();", "", "l1", step("l1", (1, 300)), "tsan", RACE
    ),
    "a sample one element too long": Bug(
        "access.cuh", "> end ? int(end - at)", "> end ? int(end - at) + 1",
        "linf", step("linf", (1, 33)), "asan", OUT_OF_BOUNDS,
    ),
    "a last vector that is left out": Bug(
        "access.cuh", "(end - first + kLanes<T> - 1) / kLanes<T>", "(end - first) / kLanes<T>",
        "linf", step("linf", (1, 33)), "plain", RESULT,
    ),
    "a mask that lets a sample's neighbour through": Bug(
        "access.cuh", "if (j >= place.low && j < place.high) to", "if (j < place.high) to",
        "linf", step("linf", (3, 33)), "tsan", RACE,
    ),
    "a mask that leaves the first element out": Bug(
        "access.cuh", "j >= place.low && j < place.high ?", "j > place.low && j < place.high ?",
        "linf", step("linf", (3, 33)), "plain", RESULT,
    ),
    "the bounds of the channel before": Bug(
        "access.cuh", "++within < inner_", "++within <= inner_",
        "linf", step("linf", (20, 7, 3, 3), "each"), "plain", RESULT,
    ),
    "the box before the ball": Bug(
        "../math.h", "clamp(clamp(v, low, high), lower, upper), clamp(low",
        "clamp(clamp(v, lower, upper), low, high), clamp(low",
        "linf", step("linf", (2, 33), beyond=0.7), "plain", RESULT,
    ),
    "a part of the batch that ends too early": Bug(
        "universal.cuh", "(part + 1) * args.samples / count",
        "(part + 1) * args.samples / count - 1", "universal", universal, "plain", RESULT,
    ),
    "a label that is no class": Bug(
        "head.cuh", "label >= 0 && label < classes", "label >= 0 && label <= classes",
        "head", head, "asan", OUT_OF_BOUNDS,
    ),
}  # fmt: skip
# Barriers whose removal nothing would catch, and why: there is none.
HARMLESS: dict[tuple[str, int], str] = {}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


def seeded(bug: Bug, folder: Path) -> Path:
    """A copy of csrc with the bug in it."""
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("cpu", "*.cpp"))
    file = csrc / "cuda" / bug.file
    parts = file.read_text().split(bug.old)
    assert len(parts) > bug.nth + 1, "the code that the bug changes has changed"
    before, after = bug.old.join(parts[: bug.nth + 1]), bug.old.join(parts[bug.nth + 1 :])
    file.write_text(before + bug.new + after)
    return csrc


@pytest.mark.parametrize("name", BUGS)
def test_a_seeded_bug_is_caught(name: str, tmp_path: Path, shared: Path) -> None:
    bug = BUGS[name]
    ops = (bug.op, "linf") if bug.op == "universal" else (bug.op,)
    driver = build(tmp_path / "build", bug.sanitizer, ops, seeded(bug, tmp_path), shared)
    with pytest.raises(Found, match=bug.caught_by):
        bug.run(Shim(driver, tmp_path, "random"))


def test_every_barrier_is_in_the_list() -> None:
    barriers = {
        (file.name, nth)
        for file in (CSRC / "cuda").glob("*.cuh")
        for nth, _ in enumerate(re.finditer(r"__sync\w+\(\)", file.read_text()))
    }
    removed = {(b.file, b.old, b.nth) for b in BUGS.values() if b.old.strip().startswith("__sync")}
    assert len(removed) + len(HARMLESS) == len(barriers)
    assert {file for file, _, _ in removed} | {f for f, _ in HARMLESS} == {f for f, _ in barriers}
