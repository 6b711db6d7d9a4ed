"""Batch norm in eval mode disappears into the convolution before it."""

from __future__ import annotations

import operator

import torch
from torch import fx

from fastadv.engine import weights
from fastadv.engine.graph import (
    CONVOLUTION,
    CONVOLUTION_BACKWARD,
    NORM,
    NORM_BACKWARD,
    insert,
    is_weight,
    item,
    value,
)  # fmt: skip


def fold_norms(graph: fx.Graph) -> dict[fx.Node, str]:
    """Folds each batch norm that it can; the others, with the reason why not."""
    left = {}
    for norm in [node for node in graph.nodes if node.target in NORM]:
        reason = _why_not(norm)
        if reason:
            left[norm] = reason
        else:
            _fold(norm)
    return left


def _gradients(conv: fx.Node) -> list[fx.Node]:
    """The norm's backward calls that read the convolution's output."""
    return [user for user in conv.users if user.target is NORM_BACKWARD and user.args[1] is conv]


def _why_not(norm: fx.Node) -> str | None:
    conv = norm.args[0]
    if not isinstance(conv, fx.Node) or conv.target is not CONVOLUTION or conv.args[6]:
        return "follows no convolution"
    if value(conv).dtype not in (torch.float32, torch.float64):
        return "is in half precision, where a product of weights would be rounded"
    if not all(is_weight(arg) for arg in (*conv.args[1:3], *norm.args[1:5])):
        return "has weights that are computed"
    gradients = _gradients(conv)
    if set(conv.users) != {norm, *gradients}:
        return "is not alone in reading its convolution"
    for user in norm.users:
        if user.args[1] != 0 and any(reader not in gradients for reader in user.users):
            return "gives its statistics to others"
    for gradient in gradients:
        if gradient.args[7] or list(gradient.args[9]) != [True, False, False]:  # type: ignore[arg-type]
            return "has gradients of its own"
        for part in gradient.users:
            for reader in part.users:
                if reader.target is not CONVOLUTION_BACKWARD or reader.args[2] is not conv.args[1]:
                    return "hands its gradient to others"
    return None


def _fold(norm: fx.Node) -> None:
    conv, gamma, beta, mean, variance, _, eps = norm.args
    assert isinstance(conv, fx.Node)
    assert isinstance(variance, fx.Node)
    x, weight, bias = conv.args[:3]
    first = next(node for node in norm.graph.nodes if node.op != "placeholder")
    vector = value(variance)
    scale = insert(first, weights.norm_scale, (gamma, variance, eps), vector, conv)
    shift = insert(first, weights.norm_shift, (bias, scale, mean, beta), vector, conv)
    product = insert(first, weights.scaled, (weight, scale), value(weight), conv)
    folded = insert(norm, CONVOLUTION, (x, product, shift, *conv.args[3:]), value(conv), conv)
    folded.meta["norm"] = (weight, scale)
    for gradient in _gradients(conv):
        part = item(gradient, 0)
        for reader in list(part.users):
            reader.update_arg(2, product)
            reader.meta["norm"] = (weight, scale)
        part.replace_all_uses_with(gradient.args[0])  # type: ignore[arg-type]
    for user in list(norm.users):
        if user.target is operator.getitem and user.args[1] == 0:
            user.replace_all_uses_with(folded)
    _erase_unused(norm)


def _erase_unused(norm: fx.Node) -> None:
    """The norm, its convolution and their backward: nothing reads them now."""
    conv = norm.args[0]
    assert isinstance(conv, fx.Node)
    for gradient in _gradients(conv):
        for part in list(gradient.users):
            norm.graph.erase_node(part)
        norm.graph.erase_node(gradient)
    for user in list(norm.users):
        norm.graph.erase_node(user)
    norm.graph.erase_node(norm)
    norm.graph.erase_node(conv)
