"""The compiler on CUDA: the same capture as on the CPU, compiled by torch's inductor.

Inductor writes one kernel for a batch norm, the residual sum and the ReLU that follow a
convolution, and one for their gradients: folding the norm into the weights, as on the CPU, would
save no pass over memory, and is left out. Counted: two layers of convolution, norm and ReLU take 4
such kernels, forward and backward, and without the norms 4 as well.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from fastadv.engine.graph import source_of
from fastadv.engine.report import Row
from fastadv.engine.reshaped import writes_on_copies
from fastadv.engine.rewrite import layer_of

SERVES = {"cuda"}  # the device types


def serves(t: Tensor) -> bool:
    """Whether a tensor is on a device whose models inductor compiles."""
    if t.is_cpu and "cpu" not in SERVES:  # the name of a device takes 4 us in an attack's loop
        return False
    return t.device.type in SERVES


def why_plain() -> str | None:
    """Why a model on such a device runs as plain torch, or None."""
    if importlib.util.find_spec("triton") is None:
        return "inductor needs Triton, which is not installed"
    return None


class Inductor:
    """Compiles the graphs of one model; `rows` says what serves those compiled last."""

    def __init__(self, bfloat16: bool) -> None:
        self.served = "inductor, bfloat16" if bfloat16 else "inductor"
        self.rows: list[Row] = []
        self.graphs = 0
        self.halves = None  # its graphs are called as torch.compile calls them
        self.writes_on_copies = False

    def __call__(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs += 1
        self.writes_on_copies |= writes_on_copies(graph.graph)
        self.rows += self._rows(graph.graph)
        # A donated buffer would be the backward's to write to: graphs may be kept, and run again.
        # AOTAutograd's cache forgets about it; inductor's own, of kernels, stays on.
        with torch._functorch.config.patch(donated_buffer=False, enable_autograd_cache=False):
            return inner(graph, inputs)

    def _rows(self, graph: fx.Graph) -> list[Row]:
        """One for each weight that is a matrix, and for what reads it."""
        rows = []
        for node in graph.nodes:
            weight = node.meta.get("example_value") if node.op == "placeholder" else None
            if not isinstance(weight, Tensor) or weight.dim() < 2 or source_of(node) is None:
                continue
            node.meta |= {"source": source_of(node), "val": weight}
            layer, shape = layer_of(node)
            last = weight.dim() > 2 and weight.stride(1) == 1 and weight.shape[1] > 1
            for user in node.users:
                name = getattr(user.target, "__name__", str(user.target)).strip("_")
                why = "channels last" if last else ""
                rows.append(Row(layer, f"{name} {shape}", self.served, why))
        return rows


def inner(graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    """What compiles the graph: inductor, without its own CUDA graphs (replay.py has the step's)."""
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    from fastadv.engine.backend import donate_nothing

    def compile_one(module: fx.GraphModule, args: Any, **options: Any) -> Any:
        if options.get("is_backward"):
            donate_nothing()
        return compile_fx_inner(module, args, **options)

    options = {"triton.cudagraphs": False}
    return cast(Callable[..., Any], compile_fx(graph, inputs, compile_one, options))
