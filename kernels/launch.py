"""Which function serves which op on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastadv.kernels.digest import digest
from fastadv.kernels.head import head
from fastadv.kernels.step import step_l1_, step_l2_, step_linf_
from fastadv.kernels.uniform import uniform
from fastadv.kernels.universal import universal_l1_, universal_l2_, universal_linf_

IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "step_linf_": step_linf_,
    "step_l2_": step_l2_,
    "step_l1_": step_l1_,
    "universal_linf_": universal_linf_,
    "universal_l2_": universal_l2_,
    "universal_l1_": universal_l1_,
    "head": head,
    "digest": digest,
    "uniform": uniform,
}
