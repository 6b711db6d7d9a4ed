"""The emulator's machine: bounds, alignment, races, barriers, branches, warps, counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.emulator.ptx import PtxError, entries, run


def kernel(body: str, pointers: int = 2, shared: int = 256, name: str = "k") -> str:
    """A kernel of `pointers` arrays p0, p1, ...; t is the thread, i its index in the grid, at 4 * i
    and near 4 * t."""
    loads = "".join(f"ld.param.u64 p{i}, [{name}_{i}];\n" for i in range(pointers))
    parameters = ", ".join(f".param .u64 {name}_{i}" for i in range(pointers))
    names = ", ".join(f"p{i}" for i in range(pointers))
    return f"""
    .version 8.8\n.target sm_80\n.address_size 64
    .visible .entry {name}({parameters}) {{
    .reg .b32 t, b, n, i, a, c, near; .reg .b64 at, {names}; .reg .pred p, q;
    .shared .align 16 .b8 s[{shared}];
    {loads} mov.u32 t, %tid.x; mov.u32 b, %ctaid.x; mov.u32 n, %ntid.x;
    mad.lo.u32 i, b, n, t; mul.wide.u32 at, i, 4; shl.b32 near, t, 2; mov.u32 c, s;
    {body}
    }}"""


STORE = "add.u64 p1, p1, at; st.global.b32 [p1], a; ret;"


def test_a_copy_and_its_bytes():
    x, y = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    stats = run(kernel("add.u64 p0, p0, at; ld.global.b32 a, [p0];" + STORE), [x, y], 4, 64)
    np.testing.assert_array_equal(x, y)
    assert (stats.loaded, stats.stored) == ({0: 1024}, {1: 1024})
    assert stats.narrow == {0: 1024, 1: 1024}
    assert stats.executed["ld.global.b32"] == 256


def test_lanes_at_one_address_count_once_a_warp():
    x, y = np.arange(1, dtype=np.float32), np.zeros(128, np.float32)
    stats = run(kernel("ld.global.b32 a, [p0];" + STORE), [x, y], 1, 128)
    assert stats.loaded[0] == 4 * 4


def test_torch_tensors_are_updated_in_place():
    x, y = torch.arange(32.0).bfloat16(), torch.zeros(32).bfloat16()
    body = "mul.wide.u32 at, i, 2; add.u64 p0, p0, at; .reg .b16 h; ld.global.b16 h, [p0];"
    run(kernel(body + "add.u64 p1, p1, at; st.global.b16 [p1], h; ret;"), [x, y], 1, 32)
    assert torch.equal(x, y)


@pytest.mark.parametrize("short", ["x", "y"])
def test_one_element_too_far_is_out_of_bounds(short):
    x = np.zeros(63 if short == "x" else 64, np.float32)
    y = np.zeros(63 if short == "y" else 64, np.float32)
    body = kernel("add.u64 p0, p0, at; ld.global.b32 a, [p0];" + STORE)
    with pytest.raises(PtxError, match="out of bounds: 4 bytes at byte 252 of an array of 252"):
        run(body, [x, y], 1, 64)


def test_addresses_of_nothing():
    x = np.zeros(64, np.float32)
    with pytest.raises(PtxError, match="where nothing is"):
        run(kernel("mov.u64 p0, 64; ld.global.b32 a, [p0]; ret;"), [x, x], 1, 32)
    with pytest.raises(PtxError, match="of 256 in shared memory"):
        run(kernel("ld.shared.b32 a, [c+256]; ret;"), [x, x], 1, 32)


def test_misaligned_accesses():
    x = np.zeros(64, np.float32)
    with pytest.raises(PtxError, match="misaligned: 8 bytes"):
        run(kernel("ld.global.v2.b32 {a, b}, [p0+4]; ret;"), [x, x], 1, 32)


EXCHANGE = (  # through shared memory: every thread reads what the one across wrote
    "add.u32 c, c, near; st.shared.b32 [c], i; {first} sub.u32 a, n, t; sub.u32 a, a, 1;"
    "shl.b32 a, a, 2; mov.u32 c, s; add.u32 c, c, a; ld.shared.b32 a, [c]; {second}"
    "mov.u32 c, s; add.u32 c, c, near; st.shared.b32 [c], i;" + STORE
)


def test_threads_exchange_across_a_barrier():
    y = np.zeros(128, np.uint32)
    code = EXCHANGE.format(first="bar.sync 0;", second="bar.sync 0;")
    stats = run(kernel(code), [y, y], 2, 64)
    np.testing.assert_array_equal(y.reshape(2, 64), np.arange(128).reshape(2, 64)[:, ::-1])
    assert stats.barriers == 4


@pytest.mark.parametrize(("first", "second", "what"), [
    ("", "bar.sync 0;", "reads what another thread wrote"),
    ("bar.sync 0;", "", "writes what another thread read"),
    ("bar.warp.sync -1;", "bar.sync 0;", "reads what another thread wrote"),
])  # fmt: skip
def test_a_missing_barrier_is_a_race(first, second, what):
    y = np.zeros(64, np.uint32)
    with pytest.raises(PtxError, match=f"race in shared memory.*{what}"):
        run(kernel(EXCHANGE.format(first=first, second=second)), [y, y], 1, 64)


def test_a_warps_sync_orders_its_own_threads():
    y = np.zeros(32, np.uint32)
    code = EXCHANGE.format(first="bar.warp.sync -1;", second="bar.warp.sync -1;")
    run(kernel(code), [y, y], 1, 32)
    np.testing.assert_array_equal(y, np.arange(32)[::-1])
    with pytest.raises(PtxError, match="race"):
        run(kernel(EXCHANGE.format(first="", second="bar.warp.sync -1;")), [y, y], 1, 32)


def test_two_writers_of_one_place():
    y = np.zeros(64, np.uint32)
    with pytest.raises(PtxError, match="writes another value at once"):
        run(kernel("st.shared.b32 [c], i; ret;"), [y, y], 1, 64)
    run(kernel("st.shared.b32 [c], n; ret;"), [y, y], 1, 64)  # the same value
    with pytest.raises(PtxError, match="reads what another thread wrote"):
        run(kernel("st.shared.b32 [c], n; ld.shared.b32 a, [c]; ret;"), [y, y], 1, 64)


def test_blocks_race_in_global_memory():
    """A barrier orders the threads of a block, and nothing orders two blocks."""
    y = np.zeros(64, np.uint32)
    across = "add.u64 p1, p1, at; st.global.b32 [p1], i; bar.sync 0; xor.b32 i, i, {by};" \
        "mul.wide.u32 at, i, 4; add.u64 p0, p0, at; ld.global.b32 a, [p0]; ret;"  # fmt: skip
    run(kernel(across.format(by=1)), [y, y], 2, 32)
    with pytest.raises(PtxError, match="race in global memory"):
        run(kernel(across.format(by=32)), [y, y], 2, 32)
    with pytest.raises(PtxError, match="race in global memory"):  # though they run one by one
        run(kernel(across.format(by=32)), [y, y], 2, 32, lanes=32)
    with pytest.raises(PtxError, match="race in global memory"):
        run(kernel("st.global.b32 [p1], i; ret;"), [y, y], 2, 1)


def test_updates_may_meet_each_other_and_nothing_else():
    y = np.zeros(4, np.uint32)
    run(kernel("red.global.add.u32 [p1], t; ret;"), [y, y], 3, 32)
    assert y[0] == 3 * sum(range(32))
    with pytest.raises(PtxError, match="race in global memory"):
        run(kernel("red.global.add.u32 [p1], t; ld.global.b32 a, [p1]; ret;"), [y, y], 1, 32)
    code = "atom.shared.max.u32 a, [c], t; bar.sync 0; ld.shared.b32 a, [c];" + STORE
    z = np.zeros(64, np.uint32)
    run(kernel("setp.eq.u32 p, t, 0; @p st.shared.b32 [c], 0; bar.sync 0;" + code), [z, z], 1, 64)
    assert (z == 63).all()


def test_branches_part_and_meet():
    y = np.zeros(64, np.uint32)
    code = """mov.b32 a, 0; mov.b32 b, 0;
    $again: setp.ge.u32 p, b, t; @p bra $done; add.u32 a, a, b; add.u32 b, b, 1; bra.uni $again;
    $done: bar.sync 0;"""  # the sum of 0 .. t - 1
    run(kernel(code + STORE), [y, y], 1, 64)
    np.testing.assert_array_equal(y, [n * (n - 1) // 2 for n in range(64)])


def test_barriers_that_not_all_threads_reach():
    y = np.zeros(64, np.uint32)
    early = "setp.eq.u32 p, t, 3; @p ret; bar.sync 0; ret;"
    with pytest.raises(PtxError, match="threads that have ended"):
        run(kernel(early), [y, y], 1, 64)
    apart = "setp.eq.u32 p, t, 3; @p bra $one; bar.sync 0; ret; $one: bar.sync 0; ret;"
    with pytest.raises(PtxError, match="a divergent barrier"):
        run(kernel(apart), [y, y], 1, 64)


@pytest.mark.parametrize(("mode", "bound", "source"), [
    ("bfly", 31, lambda lane: lane ^ 5), ("idx", 31, lambda lane: 5),
    ("down", 31, lambda lane: lane + 5 if lane + 5 < 32 else lane),
    ("up", 0, lambda lane: lane - 5 if lane >= 5 else lane),
    ("bfly", 0x1C03, lambda lane: lane ^ 5 if (lane ^ 5) // 4 <= lane // 4 else lane),
])  # fmt: skip
def test_shuffles(mode, bound, source):
    y = np.zeros(64, np.uint32)
    run(kernel(f"shfl.sync.{mode}.b32 a|p, i, 5, {bound}, -1;" + STORE), [y, y], 1, 64)
    expected = [32 * (i // 32) + source(i % 32) for i in range(64)]
    np.testing.assert_array_equal(y, expected)


def test_shuffles_need_their_lanes():
    y = np.zeros(32, np.uint32)
    code = "setp.lt.u32 p, t, 16; @p shfl.sync.bfly.b32 a, i, 1, 31, {mask}; ret;"
    with pytest.raises(PtxError, match="lanes are not all here"):
        run(kernel(code.format(mask="-1")), [y, y], 1, 32)
    with pytest.raises(PtxError, match="does not take part"):
        run(kernel(code.format(mask="65535").replace("i, 1,", "i, 16,")), [y, y], 1, 32)


def test_votes_and_reductions():
    y = np.zeros(64, np.uint32)
    code = "setp.lt.u32 p, t, 40; vote.sync.ballot.b32 a, p, -1;" + STORE
    run(kernel(code), [y, y], 1, 64)
    np.testing.assert_array_equal(y, [2**32 - 1] * 32 + [255] * 32)
    run(kernel("redux.sync.add.s32 a, i, -1;" + STORE), [y, y], 1, 64)
    np.testing.assert_array_equal(y, [496] * 32 + [496 + 1024] * 32)
    code = "setp.lt.u32 p, t, 32; vote.sync.all.pred q, p, -1; selp.b32 a, 1, 0, q;" + STORE
    run(kernel(code), [y, y], 1, 64)
    np.testing.assert_array_equal(y, [1] * 32 + [0] * 32)


def test_local_memory_is_a_threads_own():
    y = np.zeros(64, np.uint32)
    code = """.local .align 4 .b8 own[16]; .reg .b64 l; mov.u64 l, own; st.local.b32 [l+4], i;
    bar.sync 0; cvta.local.u64 l, l; ld.b32 a, [l+4];"""
    run(kernel(code + STORE), [y, y], 2, 32)
    np.testing.assert_array_equal(y, np.arange(64))


def test_grids_of_three_dimensions():
    y = np.zeros(2 * 3 * 4, np.uint32)
    code = """mov.u32 a, %ctaid.y; mov.u32 c, %ctaid.z; mad.lo.u32 a, c, 3, a;
    mov.u32 c, %ctaid.x; mad.lo.u32 i, a, 2, c; mul.wide.u32 at, i, 4;"""
    run(kernel(code + "mov.b32 a, i;" + STORE), [y, y], (2, 3, 4), 1)
    np.testing.assert_array_equal(y, np.arange(24))


def test_modules_of_several_kernels():
    both = kernel("ret;", name="one") + kernel("trap; ret;", name="two")
    y = np.zeros(1, np.uint32)
    assert entries(both) == ["one", "two"]
    run(both, [y, y], 1, 32, kernel="one")
    with pytest.raises(PtxError, match="the kernel stops itself"):
        run(both, [y, y], 1, 32, kernel="two")
    with pytest.raises(PtxError, match="`kernel` must name one of"):
        run(both, [y, y], 1, 32)


def test_arguments_that_do_not_fit():
    y = np.zeros(64, np.uint32)
    with pytest.raises(PtxError, match="2 arguments are expected, got 3"):
        run(kernel("ret;"), [y, y, y], 1, 32)
    with pytest.raises(PtxError, match="must be contiguous"):
        run(kernel("ret;"), [y[::2], y], 1, 32)
