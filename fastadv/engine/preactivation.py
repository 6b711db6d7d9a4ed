"""Batch norm in eval mode before a ReLU, as pre-activation nets have it: one pass with the ReLU.

A norm that follows a convolution folds into its weights (fold.py); one that follows a sum cannot.
"""

from __future__ import annotations

import operator

from torch import fx

from fastadv.engine import calls, weights
from fastadv.engine.graph import (
    NORM_BACKWARD,
    RELU,
    RELU_BACKWARD,
    insert,
    is_channels_last,
    is_weight,
    item,
    only_user,
    residual_after,
    signs_of,
    value,
)


def rectify_norms(norms: list[fx.Node]) -> list[fx.Node]:
    """Puts one pass in the place of each norm with its ReLU where it can; returns those norms."""
    served = []
    for norm in norms:
        relu = _relu_after(norm)
        if relu is not None and _fits(norm, relu):
            _rectify(norm, relu)
            served.append(norm)
    return served


def _relu_after(norm: fx.Node) -> fx.Node | None:
    """The ReLU that alone reads a norm's output."""
    for user in norm.users:
        if user.target is operator.getitem and user.args[1] == 0:
            reader = only_user(user)
            return reader if reader is not None and reader.target is RELU else None
    return None


def _gradients(norm: fx.Node) -> list[fx.Node]:
    x, gamma = norm.args[:2]
    assert isinstance(x, fx.Node)
    backward = [user for user in x.users if user.target is NORM_BACKWARD]
    return [node for node in backward if node.args[1] is x and node.args[2] is gamma]


def _fits(norm: fx.Node, relu: fx.Node) -> bool:
    gradients = _gradients(norm)
    if not is_channels_last(value(norm.args[0])) or not is_channels_last(value(relu)):
        return False
    if not all(is_weight(arg) for arg in norm.args[1:5]):
        return False
    for user in norm.users:
        if user.args[1] != 0 and any(reader not in gradients for reader in user.users):
            return False
    for node in gradients:
        grad = node.args[0]
        if not isinstance(grad, fx.Node) or grad.target is not RELU_BACKWARD:
            return False
        if grad.args[1] is not relu or grad.args[2] != 0 or len(grad.users) != 1:
            return False
        if node.args[7] or list(node.args[9]) != [True, False, False]:  # type: ignore[arg-type]
            return False
    return True


def _rectify(norm: fx.Node, relu: fx.Node) -> None:
    x, gamma, beta, mean, variance, _, eps = norm.args
    first = next(node for node in norm.graph.nodes if node.op != "placeholder")
    vector = value(variance)
    scale = insert(first, weights.norm_scale, (gamma, variance, eps), vector, norm)
    shift = insert(first, weights.norm_shift, (None, scale, mean, beta), vector, norm)
    y = value(relu)
    both = insert(relu, calls.norm_rectify, (x, scale, shift), (y, signs_of(y)), relu)
    rectified, signs = item(both, 0), item(both, 1)
    for node in _gradients(norm):
        masked = node.args[0]
        assert isinstance(masked, fx.Node)
        last = item(node, 0)
        residual: fx.Node | None = None
        if found := residual_after(last):
            last, residual = found
        args = (masked.args[0], scale, residual, signs)
        last.replace_all_uses_with(insert(last, calls.norm_masked, args, value(last), node))
    relu.replace_all_uses_with(rectified, delete_user_cb=lambda n: n.target is not RELU_BACKWARD)
