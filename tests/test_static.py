"""The checked-in static tables: what they promise, and that they are what a fresh compile gives."""

from __future__ import annotations

import csv

import pytest
import torch

pytest.importorskip("triton")

from bench import aot, machine_code, peers, roofline, static
from bench.trace import traced
from fastadv.kernels.variants import variants

VARIANTS = {v.name: v for v in variants()}
ARCHES = {"sm_80": 80, "sm_90": 90, "sm_100": 100, "gfx942": "gfx942"}
# A few of each family.
SOME = [
    ("step_linf.fp32.one", "sm_80"), ("step_linf.fp32.one", "sm_90"),
    ("step_linf.fp32.one", "sm_100"), ("step_linf.fp32.one", "gfx942"),
    ("step_linf.bf16.each", "sm_90"), ("step_l2.fp32.3072", "sm_80"),
    ("step_l2.fp32.3072", "sm_100"), ("step_l2.bf16.784", "sm_90"),
    ("step_l2_long.fp32.many", "sm_90"), ("moments_l2.bf16.one", "sm_80"),
    ("step_l1.fp32.3072", "sm_90"), ("accumulate.fp32.weighted", "sm_90"),
    ("combine.fp32", "sm_80"), ("uniform.fp32.number", "sm_90"), ("digest.i32.784", "gfx942"),
]  # fmt: skip


MORE = ("long", "universal")  # steps of several passes, or without an x


@pytest.fixture(scope="module")
def table() -> dict[tuple[str, str], dict[str, str]]:
    return static.stored()


def test_the_table_has_every_variant_on_every_architecture(table):
    cuda = [(name, arch) for arch in ("sm_80", "sm_90", "sm_100") for name in static.CUDA_NAMES]
    triton = [(v.name, a if isinstance(a, str) else f"sm_{a}") for v, a in static.tabled()]
    assert list(table) == triton + cuda


@pytest.mark.parametrize(("name", "arch"), SOME)
def test_a_fresh_compile_gives_the_table(table, name, arch):
    """Some rows; `python -m bench.static --check` compares all, in minutes."""
    (row,) = static.rows([(VARIANTS[name], ARCHES[arch])])
    assert static.differences(row, table[name, arch]) == []


def test_the_check_prints_what_differs(table, monkeypatch, capsys):
    assert static.main(["--only", "step_linf.fp32.none", "--arch", "80", "--check"]) == 0
    other = dict(table["step_linf.fp32.none", "sm_80"], spills="7", registers="1")
    monkeypatch.setattr(static, "stored", lambda: {("step_linf.fp32.none", "sm_80"): other})
    assert static.main(["--only", "step_linf.fp32.none", "--arch", "80", "--check"]) == 1
    assert "step_linf.fp32.none sm_80: spills '7', now '0'" in capsys.readouterr().err


@pytest.mark.skipif(aot.nvcc() is None, reason="nvcc is not installed")
def test_a_fresh_compile_of_csrc_cuda_gives_the_table(table):
    rows = static.cuda_rows([90])
    assert len(rows) == len(static.CUDA_NAMES)
    assert [static.differences(row, table[row.variant, row.arch]) for row in rows] == [[]] * len(
        rows
    )


SPILLS = {  # accesses to local memory, of dense on sm_100 with Triton 3.7.1 alone
    ("dense.bf16.784-512-512-10.linf.32", "sm_100"): "10",
    ("dense.fp32.784-256-256-10.linf.32", "sm_100"): "4",
}


def test_no_kernel_spills_and_all_fit(table):
    for (name, arch), row in table.items():
        assert row["spills"] == SPILLS.get((name, arch), "0"), (name, arch)
        assert row["stack_bytes"] == "0" or (name, arch) in SPILLS
        assert int(row["shared_bytes"]) <= machine_code.SHARED_LIMIT[ARCHES[arch]], (name, arch)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
def test_single_pass_steps_move_four_elements_an_element(table, dtype, arch):
    """12 B read and 4 B written in float32, in 128-bit accesses."""
    ideal = {"fp32": "16", "bf16": "8", "fp16": "8", "fp64": "32"}[dtype]
    steps = tuple(f"step_{norm}.{dtype}." for norm in ("linf", "l2", "l1"))
    single = [n for n, a in table if a == arch and n.startswith(steps) and not n.endswith(MORE)]
    assert len(single) > 2
    assert {table[name, arch]["bytes_element"] for name in single} == {ideal}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_cuda_steps_have_128_bit_bodies(table, arch):
    for name in ("cuda.step_linf.fp32", "cuda.step_linf.bf16"):
        assert "128:3" in table[name, arch]["loads"]
        assert "128:1" in table[name, arch]["stores"]
    for name in ("cuda.step_l2.fp32", "cuda.step_l1.fp32"):
        assert "128:12" in table[name, arch]["loads"]
        assert "128:4" in table[name, arch]["stores"]


def test_dense_runs_on_tensor_cores(table):
    dense = {key: row for key, row in table.items() if key[0].startswith("dense")}
    assert "HGMMA" in dense[static.HOPPER, "sm_90"]["tensor"]
    assert all("MMA" in row["tensor"] for row in dense.values())


def test_the_roofline_counts_what_the_issue_asks():
    with static.ROOFLINE.open(newline="") as file:
        found = list(csv.DictReader(file))
    ours = {(r["op"], r["shape"], r["dtype"]): r for r in found if r["written_by"] == "fastadv"}
    theirs = {(r["op"], r["shape"], r["dtype"]): r for r in found if r["written_by"] != "fastadv"}
    linf = ours["step_linf", "64x3x224x224", "fp32"]
    assert (linf["launches"], float(linf["bytes_element"])) == ("1", pytest.approx(16, abs=0.1))
    held = ours["step_l2", "512x3x32x32", "fp32"]
    assert (held["launches"], float(held["bytes_element"])) == ("1", pytest.approx(16, abs=0.1))
    assert float(ours["step_l2", "64x3x224x224", "fp32"]["bytes_element"]) < 28.1
    assert ours["cross_entropy", "512x1000", "fp32"]["launches"] == "1"
    assert all(float(r["bytes_element"]) < float(theirs[k]["bytes_element"])
               for k, r in ours.items() if k in theirs and k[0].startswith("step"))  # fmt: skip


def test_the_roofline_is_counted_anew():
    stored = {
        (r["op"], r["shape"], r["dtype"], r["written_by"]): r
        for r in csv.DictReader(static.ROOFLINE.read_text().splitlines())
    }
    small = (512, 3, 32, 32)
    works = [w for w in roofline.works() if (w.dtype, w.shape) == ("fp32", small)]
    for row in (r for work in works for r in roofline.rows_of(work)):
        assert stored[row.op, row.shape, row.dtype, row.written_by] == static.as_text(row)


def test_a_trace_counts_kernels_and_bytes():
    x = torch.rand(4, 5)
    trace = traced(lambda: peers.torchattacks_linf(x, x, x, 0.1, 0.1))
    assert trace.kernels == ["sign", "mul", "add", "sub", "clamp", "add", "clamp"]
    assert trace.moved == 4 * 20 * (2 + 2 + 3 + 3 + 2 + 3 + 2)
    assert traced(lambda: x.view(20)[:3].t()).kernels == []
    assert traced(lambda: torch.rand_like(x)).moved == 4 * 20


SASS = """
        /*0000*/  MOV R1, c[0x0][0x28] ;
{before}
.L_x_1:
        /*0010*/  {inside} ;
        /*0020*/  @P0 BRA `(.L_x_2) ;
        /*0030*/  @{back} BRA `(.L_x_1) ;
        /*0040*/  EXIT ;
.L_x_2:
        /*0050*/  {cold} ;
        /*0060*/  BRA `(.L_x_3) ;
.L_x_3:
        /*0070*/  EXIT ;
"""


@pytest.mark.parametrize(("before", "inside", "cold", "repeats"), [
    ("", "LDG.E.128 R4, [R2.64]", "NOP", True), ("LDG.E.128 R4, [R2.64]", "NOP", "NOP", False),
    ("", "LDL R4, [R2]", "NOP", False), ("", "NOP", "STG.E.128 [R2.64], R4", False),
])  # fmt: skip
def test_accesses_that_a_loop_repeats(before, inside, cold, repeats):
    sass = SASS.format(before=before, inside=inside, cold=cold, back="P1")
    assert machine_code.repeats_accesses(sass) is repeats


@pytest.mark.parametrize(("threads", "registers", "shared", "share"), [
    (128, 32, 0, 1.0), (128, 64, 0, 0.5), (256, 255, 0, 0.125), (256, 32, 80_000, 0.25),
])  # fmt: skip
def test_occupancy(threads, registers, shared, share):
    """Of the CUDA occupancy calculator for compute capability 8.0."""
    code = machine_code.Code("k", 80, threads, registers, 0, 0, shared, 0)
    assert code.occupancy == share


@pytest.mark.skipif(aot.nvcc() is None, reason="nvcc is not installed")
def test_cuda_is_read_the_same_way(tmp_path):
    source = tmp_path / "copy.cu"
    source.write_text(
        'extern "C" __global__ void copy(const float4* x, float4* y) {'
        "  __shared__ float4 s[128]; s[threadIdx.x] = x[threadIdx.x]; __syncthreads();"
        "  y[threadIdx.x] = s[127 - threadIdx.x]; }"
    )
    cubin = aot.compile_cuda(source, 80, "cubin").read_bytes()
    (code,) = machine_code.read_cubin(cubin, 80, {"copy": 128})
    assert (code.loads, code.stores) == ({128: 1}, {128: 1})
    assert (code.spills, code.barriers, code.shared) == (0, 1, 2048)
    assert code.fits
    assert code.bytes_of_tile == 2 * 16 * 128
