"""Two processes, started once for all tests that need them: starting costs more than the tests."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

# Each has seen_by(rank, folder): what a process finds there, for torch.save.
MODULES = ("test_universal_ranks", "test_segmentation_ranks")


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    try:
        found = {name: importlib.import_module(name).seen_by(rank, folder) for name in MODULES}
        torch.save(found, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """By module, what either process has seen."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("torch was built without gloo")
    folder = tmp_path_factory.mktemp("ranks")
    spawn(work, (str(folder),), nprocs=2)
    both = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    return {name: [one[name] for one in both] for name in MODULES}
