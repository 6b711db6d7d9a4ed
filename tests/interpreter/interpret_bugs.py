"""Bugs that are put into the kernels' text must be caught by what the tests here compare.

Each is one replacement in a copy of kernels/, which then is compared as the other tests do it; the
copy without a bug must pass.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cases import Case, make
from head_cases import FORMS, assert_close, defined
from head_cases import make as make_head
from tolerance import assert_in_ball, assert_near, bits
from torch import Tensor

import fastadv.kernels
from fastadv import reference

SOURCES = sorted(Path(fastadv.kernels.__file__).parent.glob("*.py"))
NUMBERS = count()
GUARD = 8192  # elements after x_adv that no kernel may touch: more than any tile has


Kernels = Callable[[str], ModuleType]  # a copy's modules, by name


def copy_of(folder: Path, file: str = "", old: str = "", new: str = "") -> Kernels:
    """kernels/ with old -> new in one file, as a package of its own."""
    package = f"copy{next(NUMBERS)}"
    (folder / package).mkdir()
    for source in SOURCES:
        text = source.read_text()
        if source.name == file:
            assert old in text, f"{file} has changed: this bug needs another place"
            text = text.replace(old, new)
        (folder / package / source.name).write_text(text.replace("fastadv.kernels", package))
    sys.path.insert(0, str(folder))
    try:
        importlib.import_module(package)
        for name in ("step", "universal", "head", "uniform", "digest"):
            importlib.import_module(f"{package}.{name}")
    finally:
        sys.path.remove(str(folder))
    return lambda name: sys.modules[f"{package}.{name}"]


def guarded(t: Tensor) -> tuple[Tensor, Tensor]:
    """t, and what lies behind it in memory."""
    whole = torch.full((t.numel() + GUARD,), 0.625, dtype=t.dtype)
    whole[: t.numel()] = t.flatten()
    return whole[: t.numel()].view(t.shape), whole[t.numel() :]


def moved(op: Callable[..., None], case: Case, *rule: object) -> Tensor:
    x_adv, behind = guarded(case.x_adv)
    op(x_adv, case.grad, case.x, case.step_size, case.radius, case.bounds, *rule)
    assert bool((behind == 0.625).all()), "wrote beyond x_adv"
    return x_adv


def linf(kernels: Kernels) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for shape, bounds in (
            ((5, 3, 4, 4), "each"),
            ((3, 700), "one"),
            ((2, 33), "none"),
            ((2, 2, 33, 64), "each"),
        ):
            case = make(shape, dtype, bounds)
            if bounds == "one":  # some x beyond the box: it is the box that holds then
                case.x = case.x * 2 - 0.5
            expected = case.args()
            reference.step_linf_(*expected, True)
            assert torch.equal(
                bits(moved(kernels("step").step_linf_, case, True)), bits(expected[0])
            )


def l2(kernels: Kernels) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((4, 33), (3, 5, 2, 2)):
            _norm(kernels("step").step_l2_, reference.step_l2_, make(shape, dtype, "none"), "l2")


def l1(kernels: Kernels) -> None:
    for shape in ((4, 33), (3, 5, 2, 2)):
        case = make(shape, torch.float32, "one", radius=2.0)
        _norm(kernels("step").step_l1_, reference.step_l1_, case, "l1", 0.2)


def _norm(
    op: Callable[..., None], defined_by: Callable[..., None], case: Case, order: str, *more: float
) -> None:
    expected = case.double().args()
    defined_by(*expected, True, *more)
    got = moved(op, case, True, *more)
    assert_near(got, expected[0], case.x[0].numel(), 2.0)
    assert_in_ball(got, case.x, case.radius, order)
    still = case.x_adv.clone()  # with a gradient of zero, in a ball that holds all of it
    op(still, case.grad * 0, case.x, case.step_size, case.radius * 0 + 1e4, None, True, *more)
    assert torch.equal(bits(still), bits(case.x_adv))


def universal(kernels: Kernels) -> None:
    g = torch.Generator().manual_seed(0)
    number = torch.tensor(0.1)
    grads, weights = torch.randn(37, 40, generator=g), torch.rand(37, generator=g)
    weights[3], grads[3] = 0, torch.inf
    args = [torch.zeros(40), torch.randn(40, generator=g) / 40, grads, weights, number, number]
    expected = [a.double() for a in args]
    reference.universal_(reference.step_linf_, *expected, 0.9, False, True)
    kernels("universal").universal_linf_(*args, 0.9, False, True)
    assert_near(args[0], expected[0], 40 * 37)
    assert_near(args[1], expected[1], 40 * 37, 1.0)


def head(kernels: Kernels) -> None:
    for kind, targeted in FORMS:
        for classes in (5, 17):
            if defined(kind, targeted, classes):
                case = make_head(kind, targeted, torch.float32, 9, classes, ties=True)
                args = (case.logits, case.y, case.target, kind, targeted)
                assert_close(case, kernels("head").head(*args))


def integers(kernels: Kernels) -> None:
    x = torch.randn(3, 33, generator=torch.Generator().manual_seed(0))
    expected = reference.uniform(x, 5, 2**33, 1)
    assert torch.equal(kernels("uniform").uniform(x, 5, 2**33, 1), expected)
    assert torch.equal(kernels("digest").digest(x), reference.digest(x))


CHECKS = (linf, l2, l1, universal, head, integers)
BUGS = [
    # project and clamp swapped
    (linf, "arithmetic.py", "clamp(clamp(v, low, high), lower, upper)",
     "clamp(clamp(v, lower, upper), low, high)"),
    # masks off by one, and a tail without one
    (linf, "step_linf.py", "mask = offsets < total", "mask = offsets <= total"),
    (linf, "step_linf.py", "start + BLOCK <= total", "start + BLOCK <= total + BLOCK - 1"),
    (l2, "step_l2.py", "mask = lanes < size", "mask = lanes <= size"),
    # a zero gradient that moves
    (linf, "arithmetic.py", "tl.where(v > 0, 1.0", "tl.where(v >= 0, 1.0"),
    # roundings forgotten, or the wrong way
    (linf, "arithmetic.py", "overshot = (total - a > b) | (total - b > a)",
     "overshot = total != total"),
    (linf, "arithmetic.py", "turn(v, origin) > 0, bits - 1, bits + 1",
     "turn(v, origin) > 0, bits + 1, bits - 1"),
    (linf, "arithmetic.py", "beyond = (value > upper) | (value < lower)",
     "beyond = value != value"),
    (l2, "arithmetic.py", "turn(rounding, v - x) > 0", "turn(rounding, v - x) > 1"),
    # another sample's numbers, another channel's box
    (linf, "layout.py", "tl.load(values + first * stride)", "tl.load(values)"),
    (linf, "layout.py", "first + within // size", "first + 0 * within"),
    (linf, "layout.py", "% size // inner % channels", "% size % channels"),
    (linf, "layout.py", "tl.load(bounds + channels + channel)", "tl.load(bounds + channels)"),
    (linf, "layout.py", "tl.load(bounds + channels + each)", "tl.load(bounds + channels)"),
    # room below the radius, steps, thresholds
    (l2, "step_l2.py", "r * (1 - 2 * room) / norm", "r * (1 + 2 * room) / norm"),
    (l2, "step_l2.py", "norm = tl.sqrt(vv)", "norm = vv"),
    (l2, "step_l2.py", "tl.where(still, point, moved)", "moved"),
    (l1, "step_l1.py", "(m >= smallest) & (m > 0)", "(m > smallest) & (m > 0)"),
    (l1, "step_l1.py", "tl.where(inside, zero, high)", "tl.where(inside, zero, low)"),
    (l1, "step_l1.py", "digit = one.to(tl.int32) + two", "digit = two"),
    # sums over the batch
    (universal, "accumulate.py", "tl.where(w == 0, 0.0, w * wide)", "w * wide"),
    (universal, "accumulate.py", "begin = part * rows", "begin = part * (rows - 1)"),
    (universal, "accumulate.py", "momentum * v + ", "v + "),
    # heads
    (head, "head_math.py", "& (columns < classes)", "& (columns < classes + 1)"),
    (head, "head_math.py", "tl.min(tl.where(key == top[:, None], columns, MOST_32), 1)",
     "tl.max(tl.where(key == top[:, None], columns, 0), 1)"),
    (head, "head_probabilities.py", "tl.where(label == at, -rest,", "tl.where(label != at, -rest,"),
    (head, "head_margins.py", "tl.where(first == label, second, first)", "first"),
    (head, "head_margins.py", "first, -pull, third", "first, pull, third"),
    # counters
    (integers, "uniform.py", "c0 = high1 ^ c1 ^ k0", "c0 = high0 ^ c1 ^ k0"),
    (integers, "uniform.py", "(sample >> 32)", "(sample >> 31)"),
    (integers, "digest.py", "(index + 1)", "index"),
    (integers, "digest.py", "tl.where(mask, share.to(tl.int64, bitcast=True), 0)",
     "share.to(tl.int64, bitcast=True)"),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_copy_without_a_bug_passes(check: Callable[[Kernels], None], tmp_path: Path) -> None:
    check(copy_of(tmp_path))


@pytest.mark.parametrize(("check", "file", "old", "new"), BUGS, ids=[bug[3] for bug in BUGS])
def test_a_bug_is_caught(
    check: Callable[[Kernels], None],
    file: str, old: str, new: str, tmp_path: Path,
) -> None:  # fmt: skip
    kernels = copy_of(tmp_path, file, old, new)
    with pytest.raises(AssertionError):
        check(kernels)
