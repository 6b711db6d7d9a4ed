"""Batch norm in eval mode before an activation, as pre-activation nets have it: one pass of both.

A norm that follows a convolution folds into its weights (fold.py); one that follows a sum cannot.
"""

from __future__ import annotations

import operator

from torch import fx

from fastadv.engine import calls, weights
from fastadv.engine.activations import Found, activation_after
from fastadv.engine.graph import (
    NORM_BACKWARD,
    insert,
    is_channels_last,
    is_weight,
    item,
    residual_after,
    value,
)


def activate_norms(norms: list[fx.Node]) -> dict[fx.Node, Found]:
    """Puts one pass in the place of each norm with its activation where it can; says of which."""
    served = {}
    for norm in norms:
        found = _activation_after(norm)
        if found is not None and _fits(norm, found):
            _serve(norm, found)
            served[norm] = found
    for graph in {norm.graph for norm in served}:
        graph.eliminate_dead_code()  # or the activations would be served again
    return served


def _activation_after(norm: fx.Node) -> Found | None:
    """The activation that alone reads a norm's output."""
    outputs = [u for u in norm.users if u.target is operator.getitem and u.args[1] == 0]
    return activation_after(outputs[0]) if len(outputs) == 1 else None


def _gradients(norm: fx.Node) -> list[fx.Node]:
    x, gamma = norm.args[:2]
    assert isinstance(x, fx.Node)
    backward = [user for user in x.users if user.target is NORM_BACKWARD]
    return [node for node in backward if node.args[1] is x and node.args[2] is gamma]


def _fits(norm: fx.Node, found: Found) -> bool:
    gradients = _gradients(norm)
    if not is_channels_last(value(norm.args[0])) or not is_channels_last(value(found.y)):
        return False
    if not all(is_weight(arg) for arg in norm.args[1:5]):
        return False
    for user in norm.users:
        if user.args[1] != 0 and any(reader not in gradients for reader in user.users):
            return False
    for node in gradients:
        grad = node.args[0]
        if grad not in found.gradients or len(grad.users) != 1:  # type: ignore[union-attr]
            return False
        if node.args[7] or list(node.args[9]) != [True, False, False]:  # type: ignore[arg-type]
            return False
    return len(gradients) == len(found.gradients)


def _serve(norm: fx.Node, found: Found) -> None:
    x, gamma, beta, mean, variance, _, eps = norm.args
    first = next(node for node in norm.graph.nodes if node.op != "placeholder")
    vector = value(variance)
    scale = insert(first, weights.norm_scale, (gamma, variance, eps), vector, norm)
    shift = insert(first, weights.norm_shift, (None, scale, mean, beta), vector, norm)
    args = (x, None, found.activation, scale, shift, found.keeps)
    both = insert(found.y, calls.activate, args, found.results, found.y)
    for node in _gradients(norm):
        activated = node.args[0]
        assert isinstance(activated, fx.Node)
        last = item(node, 0)
        residual: fx.Node | None = None
        if after := residual_after(last):
            last, residual = after
        call = (activated.args[0], None, item(both, 1), found.leak, scale, residual)
        last.replace_all_uses_with(insert(last, calls.times_slopes, call, value(last), node))
    found.y.replace_all_uses_with(item(both, 0))
