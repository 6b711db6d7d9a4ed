"""`make test-gpu` where there is no GPU: one line. And its checks and its report, on the CPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tests/gpu/run.py"


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_run", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_run"] = module
    spec.loader.exec_module(module)
    return module


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    more = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], env=os.environ | more, capture_output=True,
        text=True,
    )  # fmt: skip


def test_without_a_device_it_says_so_in_one_line(tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    done = call("--report", str(report))
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"make test-gpu: skipped, torch {torch.__version__} finds no CUDA device here\n"
    )
    assert not report.exists()


@pytest.mark.slow
def test_the_checks_themselves_on_the_cpu(tmp_path: Path) -> None:
    """A few of each file; FASTADV_TEST_DEVICE=cpu make test-gpu runs all of them."""
    report = tmp_path / "report.md"
    chosen = "(speed and (step or head or captured)) or without_a_gradient or (replay and momentum)"
    arguments = ("--report", str(report), "--backend", "reference", "-k", chosen)
    done = call(*arguments, FASTADV_TEST_DEVICE="cpu")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    text = report.read_text()
    assert (
        "check_ops.py::test_nothing_moves_without_a_gradient[linf-torch.float16]` | passed" in text
    )
    assert "check_compiled.py::test_a_replay_is_the_ordinary_loop[momentum-radii]` | passed" in text
    assert "PGD-2, a net of 4 convolutions, 4x3x32x32, captured, bfloat16 | reference |" in text
    assert f"- torch: {torch.__version__}, CUDA {torch.version.cuda}" in text
    assert "- backend triton was not run: " in text
    assert "| reference | " in text
    assert "failed" in text
    assert "0 failed" in done.stdout


def test_the_report_of_failures_and_of_backends_that_are_missing(runner: ModuleType) -> None:
    results = [
        runner.Result("triton", "check_ops.py::test_a[x|y]", "passed", "", {}),
        runner.Result("triton", "check_ops.py::test_b", "failed", "off by 3", {}),
        runner.Result("reference", "check_ops.py::test_b", "skipped", "one device", {}),
        runner.Result(
            "triton", "check_speed.py::test_c", "passed", "",
            {"what": "step linf", "us": 12.5, "share of a triad's": 0.93},
        ),
    ]  # fmt: skip
    text = runner.write(results, {"cuda": "_C_cuda is not built"}, {"device 0": "H100"})
    assert "- device 0: H100\n- backend cuda was not run: _C_cuda is not built\n" in text
    assert "| triton | 2 | 1 | 0 |\n| reference | 0 | 0 | 1 |" in text
    assert "### triton: `check_ops.py::test_b`\n\n```\noff by 3\n```" in text
    assert "| step linf | triton | 12.5 us, 0.93 share of a triad's |" in text
    assert "| `check_ops.py::test_a[x\\|y]` | passed | - |" in text
    assert "| `check_ops.py::test_b` | failed | skipped |" in text
    assert "## Failures" not in runner.write(results[:1], {}, {})


def test_a_run_that_checks_nothing_has_failed(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTADV_TEST_DEVICE", "cpu")
    (result,) = runner.run("reference", ["-k", "no_such_check"])
    assert (result.check, result.outcome) == ("the run itself", "failed")
    assert "pytest ended with 5" in result.why


def test_the_facts_say_what_was_run(runner: ModuleType) -> None:
    facts = runner.facts()
    assert facts["torch"].startswith(torch.__version__)
    assert "commit" in facts["fastadv"]
    assert set(runner.backends()) == {"triton", "cuda", "reference"}
