"""The emulator's tensor cores and asynchronous copies, against plain products."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.emulator.ptx import PtxError, run
from tests.emulator.test_ptx_machine import kernel

# Where PTX's manual puts a lane's elements, written out for one lane of each fragment.
LANE = np.arange(32)
ROW, COLUMN = LANE // 4, LANE % 4


def fragments(matrix: np.ndarray, kind: str, left: bool) -> np.ndarray:
    """(32, registers) words: each lane's part of A (16, k) or B (k, 8), row by row as the manual's
    figures have them."""
    m = matrix if left else matrix.T
    step = 1 if kind == "tf32" else 2
    rows = (ROW, ROW + 8) if left else (ROW,)
    found = []
    for first in range(0, m.shape[1], 4 * step):
        for row in rows:
            parts = [m[row, first + COLUMN * step + half] for half in range(step)]
            words = np.ascontiguousarray(np.stack(parts, 1)).view(np.uint32)[:, 0]
            found.append(words)
    return np.ascontiguousarray(np.stack(found, 1))


def stored(v: np.ndarray, kind: str) -> np.ndarray:
    """Numbers as the bits of a type."""
    if kind == "bf16":
        return torch.from_numpy(v).bfloat16().view(torch.int16).numpy()
    return v.astype(np.float16).view(np.int16) if kind == "f16" else v.view(np.int32)


@pytest.mark.parametrize(("kind", "depth"), [
    ("bf16", 16), ("bf16", 8), ("f16", 16), ("f16", 8), ("tf32", 8), ("tf32", 4),
])  # fmt: skip
def test_products_of_fragments(kind, depth):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 8, shape).astype(np.float32) for shape in ((16, depth), (depth, 8)))
    in_a, in_b = fragments(stored(a, kind), kind, True), fragments(stored(b, kind), kind, False)
    c = rng.standard_normal((32, 4)).astype(np.float32)
    d = np.zeros_like(c)
    n, m = in_a.shape[1], in_b.shape[1]
    ra, rb = ([f"{v}{i}" for i in range(k)] for v, k in (("x", n), ("y", m)))
    loads = "".join(
        f"mul.wide.u32 at, t, {4 * len(regs)}; add.u64 at, at, {p};"
        + "".join(f"ld.global.b32 {r}, [at+{4 * i}];" for i, r in enumerate(regs))
        for p, regs in (("p0", ra), ("p1", rb), ("p2", ["z0", "z1", "z2", "z3"]))
    )
    code = f""".reg .b32 {", ".join(ra + rb)}, z0, z1, z2, z3; {loads}
    mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32 {{z0, z1, z2, z3}},
      {{{", ".join(ra)}}}, {{{", ".join(rb)}}}, {{z0, z1, z2, z3}};
    mul.wide.u32 at, t, 16; add.u64 at, at, p3; st.global.v4.b32 [at], {{z0, z1, z2, z3}}; ret;"""
    stats = run(kernel(code, pointers=4), [in_a, in_b, c, d], 1, 32)
    product = (a.astype(np.float64) @ b).astype(np.float64)
    for i in range(4):  # c0, c1: row `group`; c2, c3: 8 rows below
        expected = product[ROW + 8 * (i // 2), 2 * COLUMN + i % 2] + c[:, i]
        np.testing.assert_array_equal(d[:, i], expected.astype(np.float32))
    assert stats.warps("mma") == 1


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_gives_the_fragments_of_a(transposed):
    a = np.arange(256, dtype=np.int16).reshape(16, 16)
    held = np.ascontiguousarray(a.T) if transposed else a
    order = (1, 0) if transposed else (0, 1)  # matrices: rows 0-7, rows 8-15, then columns 8-15
    trans = ".trans" if transposed else ""
    code = f""".reg .b32 r0, r1, r2, r3; mul.wide.u32 at, t, 16; add.u64 at, at, p0;
    ld.global.v4.b32 {{r0, r1, r2, r3}}, [at]; shl.b32 a, t, 4; add.u32 a, a, c;
    st.shared.v4.b32 [a], {{r0, r1, r2, r3}}; bar.sync 0;
    shr.u32 i, t, 3; and.b32 i, i, 1; shr.u32 b, t, 4; and.b32 a, t, 7;
    mad.lo.u32 a, {"ib"[order[0]]}, 8, a; mul.lo.u32 a, a, 32;
    mad.lo.u32 a, {"ib"[order[1]]}, 16, a; add.u32 a, a, c;
    ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{r0, r1, r2, r3}}, [a];
    mul.wide.u32 at, t, 16; add.u64 at, at, p1; st.global.v4.b32 [at], {{r0, r1, r2, r3}}; ret;"""
    d = np.zeros((32, 4), np.uint32)
    run(kernel(code, shared=512), [held, d], 1, 32)
    np.testing.assert_array_equal(d, fragments(a, "bf16", True))


COPY = """shl.b32 a, t, 4; add.u32 c, c, a; mul.wide.u32 at, t, 16; add.u64 p0, p0, at;
  cp.async.cg.shared.global [c + 0], [p0 + 0], 0x10, {given}; cp.async.commit_group; {wait}
  .reg .b32 r0, r1, r2, r3; {barrier} xor.b32 a, a, {across}; mov.u32 c, s; add.u32 c, c, a;
  ld.shared.v4.b32 {{r0, r1, r2, r3}}, [c]; add.u64 p1, p1, at;
  st.global.v4.b32 [p1], {{r0, r1, r2, r3}}; ret;"""


def copied(wait: str, barrier: str = "", across: int = 0, given: str = "16") -> np.ndarray:
    x, y = np.arange(1, 257, dtype=np.uint32), np.zeros(256, np.uint32)
    code = COPY.format(wait=wait, barrier=barrier, across=across, given=given)
    run(kernel(code, shared=1024), [x, y], 1, 64)
    return y.reshape(64, 4)


def test_copies_arrive_where_they_are_waited_for():
    x = np.arange(1, 257).reshape(64, 4)
    np.testing.assert_array_equal(copied("cp.async.wait_group 0;"), x)
    np.testing.assert_array_equal(copied("cp.async.wait_all;"), x)
    there = copied("cp.async.wait_group 0;", "bar.sync 0;", across=512)
    np.testing.assert_array_equal(there, x[np.arange(64) ^ 32])
    np.testing.assert_array_equal(copied("cp.async.wait_group 0;", given="4")[:, 1:], 0)


@pytest.mark.parametrize(("wait", "barrier", "across"), [
    ("", "", 0), ("cp.async.wait_group 1;", "", 0), ("", "bar.sync 0;", 512),
    ("cp.async.wait_group 0;", "", 512),
])  # fmt: skip
def test_copies_that_are_not_waited_for(wait, barrier, across):
    """Not waited for; one group too few; a barrier alone; another thread's without a barrier."""
    with pytest.raises(PtxError, match="race in shared memory"):
        copied(wait, barrier, across)


def test_what_a_whole_warp_must_run():
    y = np.zeros(64, np.uint32)
    code = "setp.lt.u32 p, t, 16; @p ldmatrix.sync.aligned.m8n8.x1.shared.b16 {a}, [c]; ret;"
    with pytest.raises(PtxError, match="a part of a warp"):
        run(kernel(code), [y, y], 1, 32)
    with pytest.raises(PtxError, match="misaligned: a row"):
        run(
            kernel("add.u32 c, c, 4; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {a}, [c]; ret;"),
            [y, y],
            1,
            32,
        )
