"""Layer norms on a kernel of our own, and their gradients in one pass with the residual's sum."""

from __future__ import annotations

import torch
from torch import fx

from fastadv.engine import tokens
from fastadv.engine.graph import aten, insert, is_bias, is_weight, item, value
from fastadv.engine.layout import sizes, sum_after
from fastadv.engine.report import Row

_NORM, _GRADIENT = aten.native_layer_norm.default, aten.native_layer_norm_backward.default


def normalize_tokens(graph: fx.Graph) -> list[Row]:
    """Serves the layer norms of a graph that the kernel takes, and says which."""
    rows = []
    for node in [node for node in graph.nodes if node.target is _NORM]:
        why_not = _why_not(node)
        if why_not is None:
            _serve(node)
        rows.append(Row("(norm)", "layer norm", "ATen" if why_not else "one pass", why_not or ""))
    return rows


def _gradients(node: fx.Node) -> list[fx.Node]:
    readers = [r for user in node.users if user.args[1] != 0 for r in user.users]
    return list(dict.fromkeys(readers))


def _why_not(node: fx.Node) -> str | None:
    x, shape, gamma, beta, _ = node.args
    width = sizes(x)[-1]
    if list(shape) != [width] or not isinstance(width, int):  # type: ignore[arg-type]
        return "it is not of each token's numbers"
    if value(x).dtype != torch.float32 or value(x).device.type != "cpu":
        return "its numbers are not float32, on the CPU"
    for weight in (gamma, beta):
        if not is_weight(weight) or (weight is not None and not is_bias(value(weight), width)):
            return "its weights are computed"
    for gradient in _gradients(node):
        own = gradient.target is _GRADIENT and gradient.args[1] is x and gradient.args[5] is gamma
        if not own or list(gradient.args[7]) != [True, False, False]:  # type: ignore[arg-type]
            return "its weights ask for a gradient"
    return None


def _serve(node: fx.Node) -> None:
    x, _, gamma, beta, eps = node.args
    y = value(node)[0]
    kept = y.new_empty((*y.shape[:-1], 2))
    gradients = _gradients(node)
    both = insert(node, tokens.norm, (x, gamma, beta, eps), (y, kept), node)
    for gradient in gradients:
        result = item(gradient, 0)
        last, residual = sum_after(result) or (result, None)
        args = (gradient.args[0], item(both, 1), x, gamma, residual)
        made = insert(last, tokens.norm_gradient, args, value(last), gradient)
        last.replace_all_uses_with(made)
    for user in [user for user in node.users if user.args[1] == 0]:
        user.replace_all_uses_with(item(both, 0))
