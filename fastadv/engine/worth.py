"""Whether a compiled graph is worth its calls: what they cost, and what it saves.

Numbers are of one core with AVX-512, forward and gradient, and none is measured at run time: the
same model is served in the same way everywhere.
"""

from __future__ import annotations

import math

from torch import Tensor, fx

from fastadv.engine import calls, weights
from fastadv.engine.graph import value

GRAPH, LAYER = 0.5e-3, 0.045e-3  # seconds a graph, and a layer of it, costs over plain torch
_PRODUCT = 12e-12  # that one saves in a 3x3 convolution, ResNet-18: 42 to 98 G a second
_NARROW = 6e-12  # the same under 32 channels, and of other convolutions
_NORMED = 1.5e-9  # a number of a folded norm's output: its passes, and their gradients'
_WINOGRAD = (calls.convolve, calls.convolve_relu)
_DIRECT = (calls.convolve_directly, calls.convolve_relu_directly)


def saving(graph: fx.Graph) -> float:
    """Seconds that a graph saves for a sample."""
    return sum(_saved(node) for node in graph.nodes if node.op == "call_function")


def _saved(node: fx.Node) -> float:
    if node.target is weights.norm_shift:
        return _NORMED * sum(_numbers(user) for user in node.users)
    image = _image(node)
    if image is None or node.target not in (*_WINOGRAD, *_DIRECT):
        return 0.0
    inputs, outputs = int(value(node.args[0]).shape[1]), int(image.shape[1])
    winograd = node.target in _WINOGRAD
    # What the direct kernel reads is as large as the weights, but for its padding.
    taps = 9 if winograd else value(node.args[1]).numel() / (inputs * outputs)
    seconds = _PRODUCT if winograd and min(inputs, outputs) >= 32 else _NARROW
    return float(seconds * taps * inputs * _numbers(node))


def _image(node: fx.Node) -> Tensor | None:
    found = value(node)
    found = found[0] if isinstance(found, tuple) else found
    return found if isinstance(found, Tensor) and found.dim() > 2 else None


def _numbers(node: fx.Node) -> int:
    """A sample's."""
    image = _image(node)
    sizes = () if image is None else image.shape[1:]
    return math.prod(sizes) if all(isinstance(size, int) for size in sizes) else 0
