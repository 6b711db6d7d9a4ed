"""With products of bfloat16, what only they read is written as bfloat16: half the memory, and the
same numbers, since they would round it so. Sums, residuals and norms stay float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fastadv.engine import calls, tokens
from fastadv.engine.graph import value
from fastadv.engine.layout import RESHAPE, TURNS

# How many arguments stand before `narrow`, and which of the results it is about.
_WRITERS: dict[Callable[..., Any], tuple[int, int | None]] = {
    calls.linear: (5, None),
    tokens.linear_gelu: (5, 0),
    tokens.linear_times: (4, None),
    tokens.attend: (4, 0),
    tokens.norm: (4, 0),
    tokens.attend_gradient: (6, None),
}


def narrow_between(graph: fx.Graph) -> None:
    """Sets `narrow` where all that reads a result multiplies it."""
    for node in graph.nodes:
        if node.target not in _WRITERS:
            continue
        before, which = _WRITERS[node.target]
        results = [node]
        if which is not None or node.target is tokens.attend_gradient:
            results = [user for user in node.users if which in (None, user.args[1])]
        if results and all(_is_multiplied(result) for result in results):
            node.args = (*node.args, *[None] * (before - len(node.args)), True)
            for result in results:
                _narrow(result)


def _views(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if user.target in TURNS or user.target in RESHAPE]


def _is_multiplied(node: fx.Node) -> bool:
    views = _views(node)
    readers = [user for user in node.users if user not in views]
    return all(map(_is_multiplied, views)) and all(_multiplies(user, node) for user in readers)


def _multiplies(user: fx.Node, node: fx.Node) -> bool:
    """Whether a call does nothing but multiply a tensor."""
    if user.target in (calls.linear, tokens.linear_gelu, tokens.linear_times):
        return user.args[0] is node and node not in user.args[1:]
    if user.target is tokens.attend:
        return True
    return user.target is tokens.attend_gradient and user.args[1] is not node


def _narrow(node: fx.Node) -> None:
    node.meta["val"] = value(node).to(torch.bfloat16)
    for view in _views(node):
        _narrow(view)
