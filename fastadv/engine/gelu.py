"""What follows a linear layer, in its own pass: a bias, a residual, a GELU; and a GELU's gradient
in that of the layer after it. Of a GELU its slope is kept, and nothing is computed twice."""

from __future__ import annotations

from typing import Any

from torch import fx

from fastadv.engine import calls, tokens
from fastadv.engine.graph import ADD, aten, insert, is_bias, is_weight, item, only_user, value
from fastadv.engine.layout import TURNS, sum_after

_GELU, _GELU_BACKWARD = aten.gelu.default, aten.gelu_backward.default


def fuse_linears(graph: fx.Graph) -> dict[fx.Node, str]:
    """Takes into each linear layer what follows it; says what of which packed weights."""
    fused: dict[fx.Node, str] = {}
    for node in [node for node in graph.nodes if node.target is calls.linear]:
        packed: Any = node.args[1]
        node = _with_bias(node)
        if _with_gelu(node):
            fused[packed] = " + gelu"
        elif _with_residual(node):
            fused[packed] = " + residual"
    return fused


def _with_bias(node: fx.Node) -> fx.Node:
    user = only_user(node)
    x, packed, bias, outputs = node.args
    if bias is not None or user is None or user.target is not ADD or user.kwargs:
        return node
    other = user.args[1] if user.args[0] is node else user.args[0]
    if not isinstance(other, fx.Node) or not is_weight(other):
        return node
    if not is_bias(value(other), outputs):  # type: ignore[arg-type]
        return node
    both = insert(user, calls.linear, (x, packed, other, outputs), value(user), node)
    user.replace_all_uses_with(both)
    user.graph.erase_node(user)
    node.graph.erase_node(node)
    return both


def _with_gelu(node: fx.Node) -> bool:
    x, packed, bias, outputs = node.args
    forward = [user for user in node.users if user.target is _GELU]
    backward = [user for user in node.users if user.target is _GELU_BACKWARD]
    forms = {user.kwargs.get("approximate", "none") for user in node.users}
    whole = len(forward) + len(backward) == len(node.users) and len(forms) == 1
    if not forward or not whole or any(user.args[1] is not node for user in backward):
        return False
    y = value(node)
    slopes = y.to(value(packed).dtype)
    args = (x, packed, bias, outputs, forms == {"tanh"})
    both = insert(node, tokens.linear_gelu, args, (y, slopes), node)
    for user in forward:
        user.replace_all_uses_with(item(both, 0))
    for user in backward:
        _times(user, item(both, 1))
    return True


def _times(gradient: fx.Node, slopes: fx.Node) -> None:
    grad: Any = gradient.args[0]
    plain = grad.target is calls.linear and len(grad.args) == 4 and grad.args[2] is None
    if plain and only_user(grad) is gradient:
        x, packed, _, outputs = grad.args
        target: Any = tokens.linear_times
        args: tuple[Any, ...] = (x, packed, outputs, slopes)
    else:
        target, args = aten.mul.Tensor, (grad, slopes)
    made = insert(gradient, target, args, value(gradient), gradient)
    gradient.replace_all_uses_with(made)


def _with_residual(node: fx.Node) -> bool:
    turns, last = [], node
    while (user := only_user(last)) is not None and user.target in TURNS:
        turns.append(user)
        last = user
    found = sum_after(last)
    if found is None:
        return False
    total, other = found
    for turn in reversed(turns):
        args = _back(turn)
        val = turn.args[0].meta["val"]  # type: ignore[union-attr]
        other = insert(total, aten.permute.default, (other, args), val, node)
    made = insert(total, calls.linear, (*node.args, other), value(node), node)
    for turn in turns:
        made = insert(total, turn.target, (made, *turn.args[1:]), value(turn), node)  # type: ignore[arg-type]
    total.replace_all_uses_with(made)
    return True


def _back(turn: fx.Node) -> list[int]:
    """The permutation that undoes a node's."""
    dims = list(range(value(turn).dim()))
    if turn.target is aten.permute.default:
        order = [int(d) % len(dims) for d in turn.args[1]]  # type: ignore[union-attr,arg-type]
        return sorted(dims, key=order.__getitem__)
    a, b = (0, 1) if turn.target is aten.t.default else turn.args[1:]
    dims[a], dims[b] = dims[b], dims[a]  # type: ignore[index]
    return dims
