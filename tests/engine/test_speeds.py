"""The table of measured speeds: what follows from it, and that the one checked in is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import tables
import torch
from tables import CASE, EMPTY

import fastadv as fa
from bench.table_cases import cases
from fastadv.engine import speeds
from fastadv.engine.speeds import (
    ATEN,
    DEPTHWISE,
    DIRECT,
    FOLD,
    ISAS,
    LEARNING,
    OWN,
    PASSES,
    PLAIN,
    WINOGRAD,
    Case,
)

CONVOLUTIONS = ("convolution", "gradient")
TABLE = speeds.read(speeds.PATH)


def test_what_was_measured_is_what_is_said() -> None:
    table = tables.of("convolution", direct=3e-6, aten=5e-6)
    assert table.seconds(DIRECT, CASE, "float32") == 3e-6
    assert table.seconds(ATEN, CASE, "float32") == 5e-6


def test_what_was_not_measured_at_all_is_unknown() -> None:
    table = tables.of("convolution", direct=3e-6)
    for kernel, case, precision in (
        (WINOGRAD, CASE, "float32"),
        (DIRECT, CASE, "bfloat16"),
        (DIRECT, CASE._replace(op="gradient"), "float32"),
        (DIRECT, CASE._replace(inputs=0), "float32"),
    ):
        assert table.seconds(kernel, case, precision) is None


def test_seconds_grow_with_the_work_above_a_calls_own() -> None:
    table = tables.of("convolution", direct=3e-6)
    found = [table.seconds(DIRECT, CASE._replace(batch=n), "float32") for n in (8, 16, 64)]
    assert found == pytest.approx([3e-6, EMPTY + 2 * 2e-6, EMPTY + 8 * 2e-6], rel=0.1)
    small = table.seconds(DIRECT, CASE._replace(height=1, width=1, batch=1), "float32")
    assert EMPTY <= small < 1.5 * EMPTY  # never less than a call costs


def test_winograds_work_is_that_of_whole_tiles() -> None:
    assert CASE._replace(height=5).work(WINOGRAD) == CASE.work(WINOGRAD)
    assert CASE._replace(height=5).work(DIRECT) == CASE.work(DIRECT) * 5 / 8


def test_the_nearest_window_and_stride_serve_where_theirs_were_not_measured() -> None:
    strided = CASE._replace(stride=2)
    measured = {
        ("convolution", "float32"): tables.rows(CASE, direct=3e-6)
        + tables.rows(strided, direct=9e-6)
    }
    table = speeds.Speeds(measured)
    found = table.seconds(DIRECT, CASE._replace(window=3.5, stride=3), "float32")
    assert found == pytest.approx(EMPTY + 8e-6 * 3.5**2 / 9, rel=0.1)


def test_neighbours_are_averaged() -> None:
    rows = [
        speeds.Measured(CASE._replace(outputs=outputs), {DIRECT: seconds})
        for outputs, seconds in ((8, 1e-5), (32, 4e-5))
    ]
    table = speeds.Speeds({("convolution", "float32"): rows})
    assert table.seconds(DIRECT, CASE, "float32") == pytest.approx(2e-5, rel=0.2)


def test_a_count_of_threads_that_was_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "table", lambda: {("avx2", 2): {}, ("avx2", 4): {}})
    for given, served in ((1, 2), (2, 2), (3, 2), (4, 4), (64, 4)):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=given: count)
        assert speeds.threads() == served


def test_aten_is_as_fast_as_ever_where_our_kernels_are_slowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = ("convolution", "float32")
    found = {
        ("baseline", 1): {key: tables.rows(direct=5e-6, aten=7e-6)},
        ("avx512", 1): {key: tables.rows(direct=2e-6, aten=3e-6)},
    }
    monkeypatch.setattr(speeds, "table", lambda: found)
    monkeypatch.setattr(speeds, "_speeds", speeds._speeds.__wrapped__)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for cpu, expected in (
        ("native (baseline)", (5e-6, 3e-6)),
        ("native (avx512)", (2e-6, 3e-6)),
        ("native (sve)", (5e-6, 3e-6)),  # one that is not known is the baseline
    ):
        backend = fa.backend().__class__(cpu, "reference", None, "")
        monkeypatch.setattr(speeds, "backend", lambda found=backend: found)
        table = speeds.current()
        seconds = tuple(table.seconds(k, CASE, "float32") for k in (DIRECT, ATEN))
        assert seconds == expected


def test_the_table_is_read_once() -> None:
    assert speeds.current() is speeds.current()
    assert speeds.table() is speeds.table()


@pytest.mark.parametrize("isa", ISAS)
def test_the_checked_in_table_is_complete(isa: str) -> None:
    parts = {threads: part for (name, threads), part in TABLE.items() if name == isa}
    assert 1 in parts
    for part in parts.values():
        for precision in ("float32", "bfloat16") if isa == "avx512" else ("float32",):
            for case in cases():
                if precision == "float32" or case.op not in PASSES | LEARNING:
                    found = [m.seconds for m in part[case.op, precision] if m.case == case]
                    assert len(found) == 1, case
                    assert set(found[0]) == kernels_of(case), case
        for op in ("graph", "layer"):
            assert [set(m.seconds) for m in part[op, "float32"]] == [{OWN}]


def kernels_of(case: Case) -> set[str]:
    if case.op == "weight gradient":
        return {WINOGRAD, ATEN, PLAIN}
    if case.op in ("depthwise", "depthwise gradient"):
        return {DEPTHWISE, ATEN, PLAIN}
    if case.op == "packing":
        winograd = {WINOGRAD} if case.window == 3 else set()
        return {DIRECT, FOLD} | winograd
    if case.op not in CONVOLUTIONS:
        return {OWN, PLAIN}
    found = {ATEN, PLAIN, FOLD if case.op == "gradient" else DIRECT}
    return found | ({WINOGRAD} if case.window == 3 else set())


def test_the_checked_in_tables_numbers_are_seconds() -> None:
    for part in TABLE.values():
        for (op, _), rows in part.items():
            for case, seconds in rows:
                least = 0 if op in ("norm", "norm gradient", "graph", "layer") else 1e-7
                assert all(least <= s < 10 for s in seconds.values()), case


def test_read_takes_what_is_not_measured_as_missing(tmp_path: Path) -> None:
    path = tmp_path / "speeds.csv"
    path.write_text(
        "isa,threads,precision,op,window,stride,inputs,outputs,pixels,batch,"
        "winograd,direct,fold,own,aten,plain\n"
        "avx2,1,float32,convolution,3,1,16,16,8,8,,3.0,,,5.0,6.5\n"
    )
    ((case, seconds),) = speeds.read(path)["avx2", 1]["convolution", "float32"]
    assert case == CASE
    assert seconds == pytest.approx({DIRECT: 3e-6, ATEN: 5e-6, PLAIN: 6.5e-6})
