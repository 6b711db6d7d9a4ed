"""Where views take numbers: a chain of them is what it does to the numbers 0, 1, 2, ...

There are many ways to write that one tensor holds the queries, keys and values of all heads, and
what autograd makes of each. Run on numbers that say where they come from, they all show the same.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from fastadv.engine.graph import aten, value
from fastadv.engine.layout import VIEWS, sizes
from fastadv.engine.tokens import Place

_JOINS = (
    aten.add.Tensor, aten.cat.default, aten.stack.default, aten.select_backward.default,
    aten.slice_backward.default,
)  # fmt: skip
_BATCHES = (2, 3)  # with which a graph of any batch is tried


def moves(node: fx.Node) -> bool:
    """Whether a node moves numbers, or adds up what was moved, and does nothing else."""
    if node.target is operator.getitem:
        before = node.args[0]
        return isinstance(before, fx.Node) and before.target in VIEWS
    return node.target in VIEWS or node.target in _JOINS


def source_of(node: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """What a node is a view of, and the views from there to it."""
    path: list[fx.Node] = []
    while node.target not in _JOINS and moves(node) and isinstance(node.args[0], fx.Node):
        path.insert(0, node)
        node = node.args[0]
    return node, path


def batches(node: fx.Node) -> tuple[int, ...]:
    """The batches to try a graph with: one, where its own is a number."""
    return (1,) if all(isinstance(size, int) for size in sizes(node)) else _BATCHES


def shape_at(node: fx.Node, batch: int) -> tuple[int, ...]:
    return tuple(_number(size, batch) for size in sizes(node))


def run(node: fx.Node, known: dict[fx.Node, Any], batch: int) -> Any:
    """What a node gives for what is known of its inputs."""

    def known_of(arg: fx.Node) -> Any:
        val = value(arg)
        return _number(val.node.expr, batch) if isinstance(val, torch.SymInt) else known[arg]

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), known_of)
    target: Any = node.target
    return target(*args, **kwargs)


def _number(size: Any, batch: int) -> int:
    return (
        int(size)
        if isinstance(size, int)
        else int(size.subs(dict.fromkeys(size.free_symbols, batch)))
    )


def place_in(source: fx.Node, path: list[fx.Node], batch: int) -> Place | None:
    """Where the heads at the end of a path stand in its source; None: in no regular steps."""
    shape = shape_at(source, batch)
    number = torch.arange(torch.Size(shape).numel()).view(shape)
    known: dict[fx.Node, Any] = {source: number}
    for node in path:
        known[node] = run(node, known, batch)
    heads: Tensor = known[path[-1]] if path else number
    first, steps = [], []
    for size, stride in zip(shape, number.stride(), strict=True):
        at = heads // stride % size
        first.append(int(at[0, 0, 0, 0]))
        step = [
            int(at.select(d, 1).flatten()[0]) - first[-1] if at.shape[d] > 1 else 0
            for d in range(4)
        ]
        grid = torch.full_like(at, first[-1])
        for d, by in enumerate(step):
            grid += by * torch.arange(at.shape[d]).view([-1 if e == d else 1 for e in range(4)])
        if not torch.equal(at, grid):
            return None
        steps.append(step)
    turned = tuple(tuple(step[d] for step in steps) for d in range(4))
    return Place(tuple(heads.shape[1:]), tuple(first), turned)
