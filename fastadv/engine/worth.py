"""Whether a compiled graph is worth its calls: what they cost, and what it saves.

Numbers are of one core with AVX-512, forward and gradient, and none is measured at run time: the
same model is served in the same way everywhere.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastadv.engine import calls, tokens, weights
from fastadv.engine.graph import value

GRAPH, LAYER = 0.5e-3, 0.045e-3  # seconds a graph, and a layer of it, costs over plain torch
# Seconds saved a product.
_WINOGRAD = 12e-12  # 3x3, ResNet-18: 42 to 98 G a second
_NARROW = 6e-12  # the same under 32 channels
_DIRECT, _FOLD = 2e-12, 8e-12  # ATen's forward is as fast
_FEW = 50e-12  # fewer than 16 channels on a side: ATen's kernels are 3 to 6 times slower
_LINEAR = 1e-12
_HALVED = 10e-12  # bfloat16
# And a number.
_NORMED = 1.5e-9  # of a folded norm's output: its passes, and their gradients'
_POOLED = 1e-9  # of a pooled image, forward or gradient
_TOKENS: dict[Any, float] = {  # of the result, or of the gradient that is given
    tokens.attend: 8e-9,
    tokens.attend_gradient: 25e-9,  # ATen's is turned and joined in twelve passes
    tokens.linear_gelu: 0.5e-9,
    tokens.linear_times: 2e-9,
}
_PRODUCTS = (calls.linear, tokens.linear_gelu, tokens.linear_times)


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


def saving(graph: fx.Graph) -> float:
    """Seconds that a graph saves for the batch that it was traced with."""
    return sum(_saved(node) for node in graph.nodes if node.op == "call_function")


def _saved(node: fx.Node) -> float:
    if node.target is weights.norm_shift:
        return _NORMED * sum(_numbers(user) for user in node.users)
    if node.target is calls.max_pool:
        return _POOLED * _numbers(node.args[0])
    if node.target is calls.max_pool_gradient:
        return _POOLED * _numbers(node)
    passes = _TOKENS.get(node.target, 0.0) * _numbers(
        node.args[0] if node.target is tokens.attend_gradient else node
    )
    if node.target in _PRODUCTS:
        half = value(node.args[1]).dtype == torch.bfloat16
        channels = value(node.args[0]).shape[-1]
        return float((_HALVED if half else _LINEAR) * channels * _numbers(node)) + passes
    return passes or _convolution(node)


def _convolution(node: fx.Node) -> float:
    winograd = node.target in (calls.convolve, calls.convolve_relu)
    direct = node.target in (calls.convolve_directly, calls.convolve_relu_directly)
    if not winograd and not direct and node.target is not calls.fold:
        return 0.0
    x, y, packed = value(node.args[0]), _image(value(node)), value(node.args[1])
    inputs, outputs = int(x.shape[1]), int(y.shape[1])
    # What the other kernels read is as large as the weights, but for its padding.
    taps = 9 if winograd else packed.numel() / (inputs * outputs)
    if winograd:
        seconds = _WINOGRAD if min(inputs, outputs) >= 32 else _NARROW
    elif min(inputs, outputs) < 16:
        seconds = _FEW
    elif packed.dtype == torch.bfloat16:
        seconds = _HALVED
    else:
        seconds = _DIRECT if direct else _FOLD
    pixels = x if x.shape[2] < y.shape[2] else y  # of a gradient with a stride
    return float(seconds * taps * inputs * outputs * _numbers(pixels) / int(pixels.shape[1]))


def _image(found: Any) -> Any:
    return found[0] if isinstance(found, tuple) else found


def _numbers(of: object) -> float:
    """How many numbers there are, of what a graph's node was traced with."""
    image = _image(value(of) if isinstance(of, fx.Node) else of)
    if not isinstance(image, Tensor):
        return 0.0
    return math.prod(float(_hint(size)) for size in image.shape)


def _hint(size: int | torch.SymInt) -> int:
    return int(size.node.hint) if isinstance(size, torch.SymInt) else size
