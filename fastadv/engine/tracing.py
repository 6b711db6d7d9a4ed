"""How Dynamo is given a model: a function a variant, a limit that raises, and views that hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import CodeType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastadv.engine.loans import quiet
from fastadv.engine.reshaped import Reshaped

F = TypeVar("F", bound=Callable[..., Any])
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


def unseen(function: F) -> F:
    """An outer torch.compile breaks its graph there, and sees nothing of what the function calls.

    As torch.compiler.disable, which imports Dynamo in 1.5 s, and in whose wrapper a call takes
    4 us more in an attack's loop.
    """
    try:
        from torch._C._dynamo import eval_frame

        skip = eval_frame._FrameAction.SKIP  # its frame, and those within
        strategy = eval_frame._FrameExecStrategy(skip, skip)
        eval_frame.set_code_exec_strategy(function.__code__, strategy)
    except (ImportError, AttributeError):  # another torch
        disabled: F = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
        return disabled
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    return function


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
