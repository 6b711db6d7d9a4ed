"""How Dynamo is given a model: a function a variant, a limit that raises, and views that hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from fastadv.engine.loans import quiet
from fastadv.engine.reshaped import Reshaped

_numbers = itertools.count()
_NAME = "fastadv_run_"


def fresh_run(bfloat16: bool = False, rows: bool = False) -> Callable[[nn.Module, Tensor], Any]:
    """module(x), of a code of its own: Dynamo keeps what it compiled with it, and counts it.

    rows: of x (N, H, W, C). Dynamo takes images of one channel for contiguous ones, whatever their
    strides, and what follows would be laid out as they are.
    """

    def run(module: nn.Module, x: Tensor) -> Any:
        return module(x.permute(0, 3, 1, 2) if rows else x)

    def cast(module: nn.Module, x: Tensor) -> Any:
        with torch.autocast(x.device.type, torch.bfloat16):
            return module(x)

    chosen = cast if bfloat16 else run
    chosen.__code__ = chosen.__code__.replace(co_name=f"{_NAME}{next(_numbers)}")
    return chosen


def is_run(code: CodeType) -> bool:
    """Whether that is the code of such a function, and not of a part that Dynamo cut off."""
    return code.co_name.startswith(_NAME)


def call(function: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """function(...): torch.compiler.disable takes a function, and its wrapper 4 us a call in an
    attack's loop, so what is traced asks for this one, and all else goes without."""
    return function(*args, **named)


@contextmanager
def limits(reshaped: bool = False) -> Iterator[None]:
    """Dynamo's limit on recompiles raises: past it, it would run the model as it is, in silence.
    And Dynamo looks for hooks that came since it compiled: by default it would never call them.

    reshaped: for a model whose own views would raise, and only for it: Dynamo follows such a mode
    into functions that it would leave to Python.
    """
    views = Reshaped() if reshaped else nullcontext()
    asked = {"fail_on_recompile_limit_hit": True, "skip_nnmodule_hook_guards": False}
    with torch._dynamo.config.patch(asked), quiet, views:
        yield
