from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, nn

_T = TypeVar("_T")
_Array = np.ndarray[Any, np.dtype[Any]]

def build_facts() -> dict[str, str | int]: ...
def processor() -> dict[str, object]: ...
def capability() -> str: ...
def multiplies_bfloat16() -> bool: ...
def use_parallel_for(function: int) -> None: ...
def step_(
    norm: int,
    x_adv: _Array,
    grad: _Array,
    x: _Array,
    step_size: _Array,
    radius: _Array,
    bounds: _Array | None,
    steepest: bool,
    top: float,
) -> None: ...
def universal_(
    norm: int,
    delta: _Array,
    velocity: _Array | None,
    grads: _Array,
    weights: _Array | None,
    step_size: _Array,
    radius: _Array,
    momentum: float,
    signs: bool,
    steepest: bool,
    top: float,
) -> None: ...
def lent(
    model: nn.Module,
    lend: Callable[[nn.Parameter], Tensor] | None,
    run: Callable[[Tensor], _T],
    x: Tensor,
    /,
) -> _T: ...
def modes_of(model: nn.Module, /) -> tuple[bool, ...]: ...
