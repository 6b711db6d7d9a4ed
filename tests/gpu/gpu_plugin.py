"""pytest's plugin of the checks on a device: where they run, and a line a check for the report.

FASTADV_TEST_DEVICE=cpu runs them on the CPU, which proves the checks and nothing about a GPU.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
import torch

DEVICE = torch.device(os.environ.get("FASTADV_TEST_DEVICE", "cuda"))
on_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="it is about CUDA itself")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    path = os.environ.get("FASTADV_GPU_RESULTS")
    if path is None or (report.when != "call" and report.passed):
        return
    why = report.longrepr[2] if report.skipped else report.longreprtext[-600:]  # type: ignore[index]
    line = {
        "check": report.nodeid.split("/")[-1],
        "outcome": report.outcome,
        "why": "" if report.passed else why,
        "measured": dict(report.user_properties),
    }
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.fixture(autouse=True)
def _same_bits() -> Iterator[None]:
    """float32 is float32, and a convolution gives the same bits twice."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with torch.backends.cudnn.flags(True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(autouse=True)
def _stand_in() -> Iterator[None]:
    """On the CPU: what stands for a stream and a graph."""
    if DEVICE.type == "cuda":
        yield
        return
    from stand_in import standing_in

    with standing_in():
        yield
