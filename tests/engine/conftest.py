"""torch's trace of a compile goes to pytest's log unless it is stopped, and takes longer than the
compile."""

import logging

import pytest
import torch


@pytest.fixture(autouse=True)
def no_trace() -> None:
    assert torch.__version__
    trace = logging.getLogger("torch.__trace")
    trace.propagate = False
    trace.handlers.clear()
