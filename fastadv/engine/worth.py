"""Whether a compiled graph is worth its calls: what they cost, and what it saves, by the table.

Nothing is measured at run time: the same model is served in the same way everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from fastadv.engine import calls, speeds, tokens, weights
from fastadv.engine.graph import size_at, value
from fastadv.engine.speeds import OWN, PLAIN, Call, Case


def why_bypass(model: nn.Module, precision: str) -> str | None:
    """Why nothing of a model is worth compiling, or None."""
    if precision == "bfloat16":
        served = any(p.dim() in (2, 4) for p in model.parameters())
        return None if served else "it has no convolution and no linear layer"
    kernels = [p for p in model.parameters() if p.dim() == 4]
    if any(isinstance(module, nn.LayerNorm) for module in model.modules()):
        return None  # a transformer, most likely
    if not kernels:  # linear layers gain a few percent, and a call costs as much
        return "it has no 2d convolution and no layer norm, and nothing else would change"
    if sum(p.numel() for p in kernels) < 512:
        return "its convolutions are too small"
    return None


class Verdict(NamedTuple):
    """From which batch on a variant is worth what it costs."""

    graph: float = 0  # called as torch.compile's graphs are
    layers: float = 0  # called layer by layer, without Dynamo and autograd around them
    said: str = ""  # in the report, where the first is not each batch


def verdict(made: Sequence[Call], graphs: int, layers: int, batches: Sequence[int]) -> Verdict:
    """What becomes of a variant for some batches."""
    least = [least_batch(made, count, layers, batches) for count in (graphs, 0)]
    graph, by_layer = (math.inf if n is None else n for n in least)
    if graph == batches[0]:
        return Verdict()
    most = batches[-1]
    where = "" if least[0] is None else f" below a batch of {least[0]}"
    saved = f"{saving(made, most):.1e} s" + (f" of a batch of {most}" if most > 1 else "")
    said = f", runs as plain torch{where}: saves {saved}, costs {cost(graphs, layers):.1e} s"
    return Verdict(graph, by_layer if by_layer > batches[0] else 0, said)


def least_batch(
    made: Sequence[Call], graphs: int, layers: int, batches: Sequence[int]
) -> int | None:
    """The least of some batches for which graphs of these calls are worth what they cost."""
    spent = cost(graphs, layers)
    return next((batch for batch in batches if saving(made, batch) >= spent), None)


def cost(graphs: int, layers: int) -> float:
    """Seconds that graphs, and their layers, cost beyond the calls of kernels."""
    return graphs * _each("graph") + layers * _each("layer")


def _each(op: str) -> float:
    return speeds.current().seconds(OWN, Case(op, 1, 1, 1, 1, 1, 1, 1), "float32") or 0.0


def saving(made: Sequence[Call], batch: int) -> float:
    """Seconds that calls save over plain torch's, for a batch of this size. Below zero: they cost.

    A convolution that is left to ATen counts too: its images are channels last, as plain torch's
    may not be.
    """
    table, total = speeds.current(), 0.0
    for kernel, case, precision in made:
        case = case._replace(batch=size_at(case.batch, batch))
        ours, plain = (table.seconds(k, case, precision) for k in (kernel, PLAIN))
        if ours is not None and plain is not None:
            total += plain - ours
    return total


def calls_of(graph: fx.Graph) -> list[Call]:
    """The calls of a rewritten graph whose seconds the table knows, but for convolutions."""
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    gradient = any(str(node.target).startswith("tangents") for node in graph.nodes)
    found = [_call(node) for node in nodes if node.target in _OPS]
    for shift in (node for node in nodes if node.target is weights.norm_shift):
        for op in ("norm", "norm gradient")[: 2 if gradient else 1]:  # passes that are gone
            images = [_image(user) for user in shift.users]
            found += [_images(op, y) for y in images if isinstance(y, Tensor) and y.dim() == 4]
    return found


def _image(node: fx.Node) -> Any:
    found = value(node)
    return found[0] if isinstance(found, tuple | list) else found


def _images(op: str, y: Any, window: float = 1, stride: float = 1) -> Call:
    """The call of a pass over images, whose output, or its gradient, is y."""
    n, channels, height, width = y.shape
    case = Case(op, window, stride, int(channels), int(channels), int(height), int(width), n)
    return Call(OWN, case, "float32")


def _pool(node: fx.Node) -> Call:
    gradient = node.target is calls.max_pool_gradient
    pairs: Any = node.args[5:7] if gradient else node.args[2:4]
    window, stride = (math.sqrt(pair[0] * pair[1]) for pair in pairs)
    y = value(node.args[0]) if gradient else _image(node)
    return _images(_OPS[node.target], y, window, stride)


def _rows(node: fx.Node) -> Call:
    """A linear layer, or a layer norm: its batch is the number of tokens."""
    x, y = value(node.args[2 if node.target is tokens.norm_gradient else 0]), _image(node)
    half = value(node.args[1]) if node.target in _PRODUCTS else x
    rows, inputs, outputs = math.prod(x.shape[:-1]), int(x.shape[-1]), int(y.shape[-1])
    return Call(OWN, Case(_OPS[node.target], 1, 1, inputs, outputs, 1, 1, rows), _precision(half))


def _attention(node: fx.Node) -> Call:
    heads = value(node.args[0]) if node.target is tokens.attend_gradient else value(node)[0]
    n, count, length, width = heads.shape
    case = Case(_OPS[node.target], 1, 1, int(width), int(count), int(length), int(length), n)
    kept = value(node.args[1]) if node.target is tokens.attend_gradient else value(node)[1]
    return Call(OWN, case, _precision(kept))


def _precision(of: Any) -> str:
    return "bfloat16" if of.dtype == torch.bfloat16 else "float32"


_PRODUCTS = (calls.linear, tokens.linear_gelu, tokens.linear_times)
_OPS: dict[Any, str] = {
    calls.linear: "linear",
    tokens.linear_gelu: "linear gelu",
    tokens.linear_times: "linear times",
    tokens.attend: "attention",
    tokens.attend_gradient: "attention gradient",
    tokens.norm: "layer norm",
    tokens.norm_gradient: "layer norm gradient",
    calls.max_pool: "pool",
    calls.max_pool_gradient: "pool gradient",
}


def _call(node: fx.Node) -> Call:
    if node.target in (calls.max_pool, calls.max_pool_gradient):
        return _pool(node)
    if node.target in (tokens.attend, tokens.attend_gradient):
        return _attention(node)
    return _rows(node)
