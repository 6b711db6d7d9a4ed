"""The CUDA kernels of csrc/cuda, compiled to PTX by nvcc and run in the emulator."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cases import Case, make
from head_cases import make as make_head
from tolerance import assert_in_ball, assert_in_box, assert_near, bits

from fastadv import reference
from fastadv.reference_head import CROSS_ENTROPY, DLR

pytest.importorskip("triton")
from bench import aot
from tests.emulator.mutants import barriers, without_barrier
from tests.emulator.ptx import PtxError, Stats, Struct, entries, run
from tests.emulator.test_emulated_heads import assert_close

pytestmark = pytest.mark.skipif(aot.nvcc() is None, reason="nvcc is not installed")
NAMES = {torch.float32: "f", torch.float64: "d", torch.bfloat16: "NS_8bfloat16E",
         torch.float16: "NS_7float16E"}  # fmt: skip
STEP = "u64 u64 u64 s64 s64 u64 s64 u64 s64 u64 u64 s64 s64 b8 f64"  # StepArgs, csrc/args.h
HEAD = "u64 u64 u64 u64 u64 u64 s64 s64 b8"


@pytest.fixture(scope="module")
def ptx() -> dict[str, str]:
    """The module's kernels, by name, each as a module of its own."""
    path = aot.compile_cuda(Path(__file__).with_name("kernels.cu"), 80, "ptx")
    text = path.read_text()
    return dict.fromkeys(entries(text), text)


def launch(ptx: dict[str, str], name: str, args: list, grid: int, block: int) -> Stats:
    (found,) = [n for n in ptx if name in n]
    return run(ptx[found], args, grid, block, kernel=found)


def step_args(case: Case, x_adv: torch.Tensor) -> Struct:
    """StepArgs, with the box of one pair of bounds or one a channel."""
    channels, inner, lower, upper = 1, 1, None, None
    if case.bounds is not None:
        lower, upper = case.bounds.reshape(2, -1).contiguous()
        channels, inner = len(lower), case.x[0, 0].numel()
    stride = int(case.step_size.dim() > 0)
    return Struct(STEP, (
        x_adv, case.grad, case.x, len(case.x), case.x[0].numel(), case.step_size, stride,
        case.radius, stride, lower, upper, channels, inner, True, 0.2,
    ))  # fmt: skip


@pytest.mark.parametrize(("dtype", "bounds"), [
    (torch.float32, "one"), (torch.bfloat16, "each"), (torch.float16, "none"),
    (torch.float64, "each"),
])  # fmt: skip
@pytest.mark.parametrize("shape", [(3, 5, 7, 11), (2, 16, 8, 8)])
def test_linf_has_the_references_bits(ptx, dtype, bounds, shape):
    case = make(shape, dtype, bounds)
    x_adv, lanes = case.x_adv.clone(), 16 // dtype.itemsize
    size = case.x[0].numel()
    blocks = -(-(size // lanes + 2 if size % lanes else size // lanes) // 256)
    each = int(bounds == "each")
    name = f"step_linfI{NAMES[dtype]}"
    stats = launch(ptx, name, [step_args(case, x_adv), True, blocks], blocks * len(case.x), 256)
    expected = case.args()
    reference.step_linf_(*expected, True)
    assert f"Lb1ELb{each}E" in next(n for n in ptx if name in n)
    assert torch.equal(bits(x_adv), bits(expected[0]))
    total = case.x.numel() * dtype.itemsize
    assert [stats.loaded[i] for i in range(3)] == [total] * 3
    assert stats.stored == {0: total}
    if size % lanes == 0:
        assert [stats.narrow[i] for i in range(3)] == [0] * 3  # all in 128 bits


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize(("shape", "threads", "held"), [((3, 1201), 256, 4), ((2, 8200), 512, 0)])
def test_l2_and_l1(ptx, norm, shape, threads, held):
    case = make(shape, torch.float32, "one", radius=2.0 if norm == "l2" else 30.0)
    x_adv = case.x_adv.clone()
    name = f"step_{norm}IffLb1ELi{threads}ELi{held}E"
    stats = launch(ptx, name, [step_args(case, x_adv), True, False], len(case.x), threads)
    wide = case.double().args()
    more = () if norm == "l2" else (0.2,)
    getattr(reference, f"step_{norm}_")(*wide, True, *more)
    assert_near(x_adv, wide[0], shape[1])
    assert_in_ball(x_adv, case.x, case.radius, norm)
    assert_in_box(x_adv, *case.box())
    total = case.x.numel() * 4
    assert stats.stored == {0: total}
    if held:
        assert [stats.loaded[i] for i in range(3)] == [total] * 3
    elif norm == "l2":
        assert sum(stats.loaded[i] for i in range(3)) == 6 * total


def test_accumulate_reads_the_batch_once(ptx):
    grads = torch.randn(40, 772, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(40, generator=torch.Generator().manual_seed(1))
    parts, total = torch.zeros(5, 772, dtype=torch.float64), torch.zeros(772)
    norms = torch.zeros(7, dtype=torch.float64)
    args = Struct("u64 u64 u64 s64 s64 b8", (None, grads, weights, 40, 772, False))
    blocks = -(-772 // 4 // 128)
    stats = launch(ptx, "accumulate", [args, parts, 5, True, blocks], 5 * blocks, 128)
    launch(ptx, "combine", [parts, 5, 772, total, norms], 7, 128)
    expected = (grads.double() * weights[:, None].double()).sum(0)
    assert_near(total, expected, 40)
    assert norms.sum() == pytest.approx(float(expected.abs().sum()), rel=1e-6)
    assert (stats.loaded[1], stats.narrow[1]) == (grads.numel() * 4, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_digest_has_the_references_bits(ptx, dtype):
    x = torch.randn(3, 1001, generator=torch.Generator().manual_seed(2)).to(dtype)
    found = torch.zeros(3, dtype=torch.long)
    args = Struct("u64 u64 s64 s64", (x, found, 3, 1001))
    launch(ptx, f"digestI{NAMES[dtype]}", [args, True], 3, 256)
    assert torch.equal(found, reference.digest(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_has_the_references_bits(ptx, dtype):
    out, seed, offset, stream = torch.zeros(3, 1001, dtype=dtype), 2**63 + 12345, 2**33 + 7, 3
    blocks = -(-1001 // (16 // dtype.itemsize) // 256) + 1
    args = Struct("u64 s64 s64 u64 s64 u32", (out, 3, 1001, seed, offset, stream))
    launch(ptx, f"uniformI{NAMES[dtype]}", [args, False, blocks], 3 * blocks, 256)
    assert torch.equal(bits(out), bits(reference.uniform(out, seed, offset, stream)))


@pytest.mark.parametrize(("number", "classes"), [
    (CROSS_ENTROPY, 33), (CROSS_ENTROPY, 3001), (DLR, 1000),
])  # fmt: skip
def test_heads(ptx, number, classes):
    case = make_head(number, number == DLR, torch.float32, 5, classes)
    loss, grad = torch.zeros(5), torch.zeros_like(case.logits)
    prediction = torch.zeros(5, dtype=torch.long)
    members = (case.logits, case.y, case.target, loss, grad, prediction, 5, classes, case.targeted)
    held = classes <= 1000
    name = f"headILNS_4HeadE{number}ELb{int(case.targeted)}EfLi{32 if held else 512}E"
    grid, threads = (2, 128) if held else (5, 512)
    launch(ptx, name, [Struct(HEAD, members), True], grid, threads)
    assert_close(case, (loss, grad, prediction))


# Of each kernel, the barriers whose removal is no bug: all are the second one of over_block
# (csrc/cuda/team.cuh), which keeps a next reduction from writing on what this one still reads. A
# reduction of another type has an array of its own, and here one of another type follows, whose
# first barrier orders the two, or none.
HARMLESS = {"l2": [1, 3, 5, 7], "l1": [5, 7, 9]}


@pytest.mark.parametrize("norm", HARMLESS)
def test_every_removed_barrier_is_caught(ptx, norm):
    """One at a time, of the kernels that hold a sample, in steps that take every path."""
    (name,) = [n for n in ptx if f"step_{norm}IffLb1ELi256E" in n]
    start = ptx[name].index(f".entry {name}(")
    body = ptx[name][start : ptx[name].index("\n}", start)]
    cases = steps(norm)
    missed = []
    for i in range(barriers(body)):
        edited = without_barrier(name, i)(body)
        module = ".version 9.0\n" + _shared(ptx[name]) + ".visible " + edited + "\n}"
        if not any(_races(module, name, case) for case in cases):
            missed.append(i)
    assert missed == HARMLESS[norm]


def steps(norm: str) -> list[Case]:
    """A plain one, one with a gradient too small to divide by, one that cancels."""
    cases = [make((1, 1201), torch.float32, "one", radius=2.0, per_sample=False) for _ in range(3)]
    cases[1].grad *= 1e-36
    d = cases[2].x_adv - cases[2].x
    cases[2].grad, cases[2].step_size = -d, d.double().norm().float()
    return cases if norm == "l2" else cases[:2]


def _shared(ptx: str) -> str:
    """The module's own variables."""
    lines = [line for line in ptx.splitlines() if line.startswith((".shared", ".global"))]
    return "\n".join(lines) + "\n"


def _races(module: str, name: str, case: Case) -> bool:
    try:
        run(module, [step_args(case, case.x_adv.clone()), True, False], 1, 256, kernel=name)
    except PtxError as error:
        return "race" in str(error)
    return False
