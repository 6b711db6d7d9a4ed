"""bench.table: parts are measured by themselves, and a wrong kernel gets no row."""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path

import pytest
import torch

import fastadv as fa
from bench import table, table_kernels
from bench.table_cases import cases
from fastadv.engine import calls, speeds

ISA = fa.backend().cpu.removeprefix("native (").removesuffix(")")
pytestmark = pytest.mark.skipif(not fa.backend().is_native, reason="no compiled kernels")


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def measure(folder: Path, *more: str) -> int:
    given = ("--here", "--isa", ISA, "--threads", "1", "--seconds", "0", *more)
    return table.main([*given, "--table", str(folder / "speeds.csv"), "--out", str(folder)])


def test_a_part_is_measured_and_read(tmp_path: Path) -> None:
    assert measure(tmp_path, "--every", "90") == 0
    part = speeds.read(tmp_path / "speeds.csv")[ISA, 1]
    found = [
        m.case for (_, precision), rows in part.items() for m in rows if precision == "float32"
    ]
    assert found[:-2] == cases()[::90]
    assert [case.op for case in found[-2:]] == ["graph", "layer"]
    with (tmp_path / "table.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["isa"], row["threads"]) == (ISA, "1")
    assert row["processor"]
    assert row["commit"]


def test_a_wrong_kernel_gets_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = calls.convolve_activated_directly

    def wrong(*args):
        y, signs = right(*args)
        return y * 1.001, signs

    monkeypatch.setattr(calls, "convolve_activated_directly", wrong)
    assert measure(tmp_path, "--every", "90") == 1
    assert "gate red" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("op", dict.fromkeys(case.op for case in cases()))
def test_each_ops_kernels_pass_their_gate(op: str) -> None:
    case = next(case for case in cases() if case.op == op)
    with torch.no_grad():
        found = table_kernels.measure(case, ("float32",), 0.0, iter(range(1000)).__next__)
    assert op == "packing" or speeds.PLAIN in found["float32"]


def test_a_part_takes_the_place_of_what_was_there_of_it(tmp_path: Path) -> None:
    path = tmp_path / "speeds.csv"

    def rows(isa: str, threads: int, batch: int) -> list[dict[str, object]]:
        return [table._row(cases()[0]._replace(batch=batch), isa, threads, "float32", {})]

    for isa, threads, batch in (("avx2", 2, 1), ("avx512", 1, 2), ("avx2", 1, 3), ("avx2", 2, 4)):
        table.write(path, isa, threads, rows(isa, threads, batch))
    with path.open(newline="") as file:
        found = [(r["isa"], r["threads"], r["batch"]) for r in csv.DictReader(file)]
    assert found == [("avx512", "1", "2"), ("avx2", "1", "3"), ("avx2", "2", "4")]
    assert [p.name for p in tmp_path.iterdir()] == ["speeds.csv"]


def test_some_ops_rows_are_measured_alone(tmp_path: Path) -> None:
    assert measure(tmp_path, "--every", "90") == 0
    before = speeds.read(tmp_path / "speeds.csv")[ISA, 1]
    assert measure(tmp_path, "--every", "50", "--op", "packing") == 0
    after = speeds.read(tmp_path / "speeds.csv")[ISA, 1]
    packings = [case for case in cases() if case.op == "packing"][::50]
    assert [m.case for m in after["packing", "float32"]] == packings
    others = {key for key in before if key[0] != "packing"}
    assert {key: after[key] for key in others} == {key: before[key] for key in others}


def test_each_part_has_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, str | None]] = []

    def call(command: list[str], env: dict[str, str]) -> int:
        isa, threads = (command[command.index(name) + 1] for name in ("--isa", "--threads"))
        assert env["FASTADV_CPU_CAPABILITY"] == isa
        asked.append((isa, threads, env.get("ONEDNN_MAX_CPU_ISA")))
        return int(isa == "baseline")

    monkeypatch.setattr(subprocess, "call", call)
    assert table.main(["--isa", "avx512", "avx2", "--threads", "1", "2"]) == 0
    assert asked == [
        ("avx512", "1", None), ("avx512", "2", None), ("avx2", "1", "AVX2"), ("avx2", "2", "AVX2"),
    ]  # fmt: skip
    assert table.main(["--threads", "1"]) == 1  # the baseline's failed
    assert asked[-1] == ("baseline", "1", "SSE41")
