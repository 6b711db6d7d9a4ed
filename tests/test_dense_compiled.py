"""The machine code of the dense attack: no spills, tensor cores, shared memory within limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton")

from bench import aot
from bench.machine_code import SHARED_LIMIT, Code, read_amd, read_cubin
from fastadv.kernels import dense_variants
from fastadv.kernels.dense_plan import TILES
from fastadv.kernels.variant import Variant

TABLE = {v.name: v for v in dense_variants.variants()}
MORE = {v.name: v for v in dense_variants.more()}
WIDE = "dense.bf16.784-256-256-10.linf.64"  # what Hopper's wgmma needs; no other chip takes it
SOME = [
    (WIDE, 90), ("dense.bf16.784-256-256-10.linf.32", 80),
    ("dense.bf16.784-256-256-10.linf.32", 100),
    ("dense.bf16.784-512-512-10.linf.32", 80), ("dense.bf16.784-512-512-10.linf.32", 90),
    ("dense.fp32.784-256-256-10.linf.32", 80),
]  # fmt: skip
SPILLS = {  # accesses to local memory with Triton 3.7.1; 3.9.0 has none
    ("dense.bf16.784-512-512-10.linf.32", 100): 10,
    ("dense.fp32.784-256-256-10.linf.32", 100): 4,
}
INSTRUCTION = {80: "HMMA", 90: "HMMA", 100: "HMMA"}


def code_of(variant: Variant, arch: int) -> Code:
    kernel = aot.compiled(variant, arch)
    (code,) = read_cubin(kernel.asm["cubin"], arch, {kernel.metadata.name: 32 * variant.warps})
    return replace(code, shared=kernel.metadata.shared)


def assert_promises(variant: Variant, arch: int, spills: int = 0) -> None:
    code = code_of(variant, arch)
    assert code.spills <= spills, (variant.name, arch, code.spills)
    assert code.shared <= SHARED_LIMIT[arch]
    tiles = [tile for row in TILES.values() for tile in row if tile.warps == variant.warps]
    rows, piece = variant.constants["ROWS"], variant.constants["PIECE"]
    assert any((t.rows, t.piece) == (rows, piece) and code.shared <= t.shared for t in tiles)
    instruction = "HGMMA" if (variant.name, arch) == (WIDE, 90) else INSTRUCTION[arch]
    assert code.tensor[instruction] > 0


@pytest.mark.parametrize(("name", "arch"), SOME)
def test_no_spills_and_tensor_cores(name: str, arch: int) -> None:
    assert_promises(TABLE[name], arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("name", TABLE)
def test_every_tile(name: str, arch: int) -> None:
    if name == WIDE and arch != 90:
        pytest.skip("no chip of this architecture takes it")
    assert_promises(TABLE[name], arch, SPILLS.get((name, arch), 0))


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("name", MORE)
def test_harder_stacks_spill_little(name: str, arch: int) -> None:
    code = code_of(MORE[name], arch)
    assert code.spills <= 8, code.spills  # 128 classes in an even number of layers: 5
    assert code.shared <= SHARED_LIMIT[arch]


@pytest.mark.parametrize("name", [
    "dense.bf16.784-256-256-10.linf.16", *[pytest.param(n, marks=pytest.mark.slow) for n in TABLE],
])  # fmt: skip
def test_amd_compiles(name: str) -> None:
    """With half as many waves, as they have 64 threads."""
    variant = TABLE[name]
    variant = replace(variant, warps=variant.warps // 2)
    kernel = aot.compiled(variant, "gfx942")
    code = read_amd(
        name, "gfx942", 64 * variant.warps, kernel.metadata.shared, kernel.asm["amdgcn"]
    )
    assert code.shared <= SHARED_LIMIT["gfx942"]
    assert code.tensor["v_mfma"] > 0
