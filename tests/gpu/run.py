"""`make test-gpu`: every check of tests/gpu on this machine's device, once for each backend.

Writes a report that can be posted in an issue: the device, the versions, the commit, what each
check said, and timings. Without a device it says so in one line, and that is all. Returns 1 if a
check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import fastadv
from fastadv import _build_info

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHECKS = sorted(HERE.glob("check_*.py"))


@dataclass(frozen=True)
class Result:
    """What one check said under one backend."""

    backend: str
    check: str
    outcome: str
    why: str
    measured: dict[str, Any]


def backends() -> dict[str, str]:
    """Which there are, and why the others are not: "" is that it is there."""
    triton = find_spec("triton") is not None
    build = _build_info.read()
    cuda = build.path("_C_cuda")
    return {
        "triton": "" if triton else "Triton is not installed",
        "cuda": "" if cuda else f"_C_cuda is not built: {build.cuda_reason or 'FASTADV_CUDA=1'}",
        "reference": "",
    }


def run(backend: str, pytest_options: Sequence[str]) -> list[Result]:
    """The checks, in a process of their own: a backend is chosen at import."""
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "results.jsonl"
        paths = [str(ROOT), *(str(ROOT / "tests" / p) for p in ("", "engine", "gpu"))]
        environment = os.environ | {
            "FASTADV_BACKEND": backend,
            "FASTADV_GPU_RESULTS": str(lines),
            "PYTHONPATH": os.pathsep.join(paths),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_plugin", "-p", "no:xdist"]
        command += ["-o", "filterwarnings=default"]  # torch has notices of its own about a device
        command += [*pytest_options, *map(str, CHECKS)]
        done = subprocess.run(command, cwd=ROOT, env=environment)
        said = lines.read_text().splitlines() if lines.exists() else []
    results = [Result(backend, **json.loads(line)) for line in said]
    if done.returncode not in (0, 1) or not results:
        why = f"pytest ended with {done.returncode}: see its output"
        results.append(Result(backend, "the run itself", "failed", why, {}))
    return results


def facts() -> dict[str, str]:
    """The device and the versions."""
    found = {
        "fastadv": f"{fastadv.__version__}, commit {_commit()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, HIP {torch.version.hip}",
        "triton": _version("triton") or "not installed",
        "python": f"{platform.python_version()}, {platform.platform()}",
    }
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        p = torch.cuda.get_device_properties(i)
        memory = p.total_memory / 2**30
        found[f"device {i}"] = f"{p.name}, sm_{p.major}{p.minor}, {memory:.0f} GiB"
    if torch.cuda.is_available():
        found["cuDNN"] = str(torch.backends.cudnn.version())
        found["driver"] = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return found


def write(results: Sequence[Result], missing: dict[str, str], facts: dict[str, str]) -> str:
    """The report, in Markdown."""
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    lines = [f"# fastadv on a GPU, {when}", ""]
    lines += [f"- {name}: {fact}" for name, fact in facts.items()]
    lines += [f"- backend {name} was not run: {why}" for name, why in missing.items()]
    names = list(dict.fromkeys(result.backend for result in results))
    counts = {b: [r.outcome for r in results if r.backend == b] for b in names}
    lines += ["", "| backend | passed | failed | skipped |", "|---|---|---|---|"]
    for name, said in counts.items():
        numbers = (str(said.count(o)) for o in ("passed", "failed", "skipped"))
        lines.append(f"| {name} | {' | '.join(numbers)} |")
    lines += _failures(results) + _timings(results)
    lines += [
        "",
        "## Each check",
        "",
        f"| check | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    outcomes = {(r.check, r.backend): r.outcome for r in results}
    for check in dict.fromkeys(result.check for result in results):
        said = (outcomes.get((check, name), "-") for name in names)
        lines.append(f"| `{_cell(check)}` | {' | '.join(said)} |")
    return "\n".join(lines) + "\n"


def _failures(results: Sequence[Result]) -> list[str]:
    lines = []
    for result in results:
        if result.outcome == "failed":
            lines += ["", f"### {result.backend}: `{result.check}`", "", "```", result.why, "```"]
    return ["", "## Failures", *lines] if lines else []


def _timings(results: Sequence[Result]) -> list[str]:
    lines = []
    for result in results:
        measured = dict(result.measured)
        if what := measured.pop("what", None):
            numbers = ", ".join(f"{value} {name}" for name, value in measured.items())
            lines.append(f"| {what} | {result.backend} | {numbers} |")
    return (
        ["", "## Timings", "", "| what | backend | median |", "|---|---|---|", *lines]
        if lines
        else []
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except OSError:
        return "unknown"
    return ", ".join(done.stdout.split()) or "unknown"


def _commit() -> str:
    head = _said("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = _said("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return head if changed == "unknown" else f"{head}, with changes"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=Path("gpu-report.md"))
    parser.add_argument("--backend", choices=("triton", "cuda", "reference"), action="append")
    arguments, pytest_options = parser.parse_known_args()
    device = os.environ.get("FASTADV_TEST_DEVICE", "cuda")
    if device == "cuda" and not torch.cuda.is_available():
        print(f"make test-gpu: skipped, torch {torch.__version__} finds no CUDA device here")
        return 0
    found = backends()
    wanted = arguments.backend or [name for name, why in found.items() if not why]
    results = [result for name in wanted for result in run(name, pytest_options)]
    missing = {name: why or "not asked for" for name, why in found.items() if name not in wanted}
    arguments.report.write_text(write(results, missing, facts()))
    failed = sum(result.outcome == "failed" for result in results)
    print(f"{len(results)} checks, {failed} failed: {arguments.report} can be posted in an issue")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
