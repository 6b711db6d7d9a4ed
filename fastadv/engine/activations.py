"""Activations in a graph: which they are, what serves them, and what becomes of their gradients.

ATen keeps an activation's input, or its output, for the gradient. Kernels of ours keep the slopes,
or a bit a number where these are two, and multiply by them in the pass that comes before: of a
convolution's gradient, a pooling's, a sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fastadv.engine import calls
from fastadv.engine.graph import (
    ADD,
    RELU,
    RELU_BACKWARD,
    aten,
    insert,
    is_channels_last,
    is_rows,
    item,
    kept_of,
    value,
)
from fastadv.engine.reference_activations import NAMES, Activation, leak_of

_Numbers = tuple[float, ...]


@dataclass(frozen=True)
class _Kind:
    """How ATen calls an activation, and its gradient."""

    name: str  # in NAMES
    backward: Any
    defaults: _Numbers = ()
    # What the gradient may be given after that of y = activation(x); the last if x was written on.
    given: Callable[[fx.Node, fx.Node, _Numbers], Sequence[Any]] = lambda x, y, n: [(x, *n)]
    numbers: Callable[[_Numbers], _Numbers] = lambda n: n  # those that the kernels take
    serves: Callable[[_Numbers], bool] = lambda n: True


_KINDS: dict[Any, _Kind] = {
    RELU: _Kind("relu", RELU_BACKWARD, (), lambda x, y, n: [(y, 0)]),
    aten.tanh.default: _Kind("tanh", aten.tanh_backward.default, (), lambda x, y, n: [(y,)]),
    aten.sigmoid.default: _Kind(
        "sigmoid", aten.sigmoid_backward.default, (), lambda x, y, n: [(y,)]
    ),
    aten.leaky_relu.default: _Kind(
        "leaky_relu", aten.leaky_relu_backward.default, (0.01,),
        lambda x, y, n: [(x, *n, False), (y, *n, True)],
    ),
    aten.hardtanh.default: _Kind("hardtanh", aten.hardtanh_backward.default, (-1.0, 1.0)),
    aten.gelu.default: _Kind("gelu", aten.gelu_backward.default),
    aten.silu.default: _Kind("silu", aten.silu_backward.default),
    aten.mish.default: _Kind("mish", aten.mish_backward.default),
    aten.hardsigmoid.default: _Kind("hardsigmoid", aten.hardsigmoid_backward.default),
    aten.hardswish.default: _Kind("hardswish", aten.hardswish_backward.default),
    aten.softplus.default: _Kind("softplus", aten.softplus_backward.default, (1.0, 20.0)),
    aten.elu.default: _Kind(
        "elu", aten.elu_backward.default, (1.0, 1.0, 1.0),
        lambda x, y, n: [(*n, False, x), (*n, True, y)], serves=lambda n: n[2] > 0,
    ),
    aten.celu.default: _Kind(
        "elu", aten.elu_backward.default, (1.0,),
        lambda x, y, n: [(n[0], 1.0, 1.0 / n[0], False, x), (n[0], 1.0, 1.0 / n[0], True, y)],
        lambda n: (n[0], 1.0, 1.0 / n[0]), lambda n: n[0] > 0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """An activation, and the gradients that ATen would compute of it."""

    activation: Activation
    y: fx.Node
    gradients: tuple[fx.Node, ...]

    @property
    def name(self) -> str:
        return NAMES[int(self.activation[0])]

    @property
    def keeps(self) -> bool:
        return bool(self.gradients)

    @property
    def leak(self) -> float:
        return leak_of(int(self.activation[0]), self.activation[1:])

    @property
    def results(self) -> tuple[Any, Any]:
        """What its kernels give: y, and what is kept of it."""
        y = value(self.y)
        return y, kept_of(y, self.activation) if self.keeps else None

    def replace(self, both: fx.Node) -> None:
        """Puts a kernel's (y, what is kept) in the place of it and of its gradients."""
        for node in self.gradients:
            args = (node.args[0], None, item(both, 1), self.leak)
            val = value(self.y)  # its memory has y's order, whatever ATen's would have
            node.replace_all_uses_with(insert(node, calls.times_slopes, args, val, node))
            node.graph.erase_node(node)
        self.y.replace_all_uses_with(item(both, 0))


def activation_after(x: fx.Node) -> Found | None:
    """The activation that, with its gradients, is all that reads x."""
    found = [user for user in x.users if user.target in _KINDS and user.args[0] is x]
    if len(found) != 1:
        return None
    y, kind = found[0], _KINDS[found[0].target]
    given: Any = (*y.args[1:], *kind.defaults[len(y.args) - 1 :])
    if not all(isinstance(n, int | float) for n in given) or set(y.kwargs) - {"approximate"}:
        return None
    numbers = tuple(float(n) for n in given)
    if not kind.serves(numbers):
        return None
    forms = kind.given(x, y, numbers)
    readers = [user for user in {**x.users, **y.users} if user.target is kind.backward]
    gradients = [
        user
        for user in readers
        if user.kwargs == y.kwargs and any(_same(user.args[1:], form) for form in forms)
    ]
    if any(user is not y and user not in gradients for user in x.users):
        return None
    name = "gelu (tanh)" if y.kwargs.get("approximate") == "tanh" else kind.name
    return Found((NAMES.index(name), *kind.numbers(numbers)), y, tuple(gradients))


def _same(args: Sequence[Any], form: Sequence[Any]) -> bool:
    """Whether these are the arguments, numbers but for a rounding to float32: of a celu ATen gives
    its gradient 1 / float32(alpha)."""
    return len(args) == len(form) and all(
        a is b or (not isinstance(b, fx.Node) and _near(a, b))
        for a, b in zip(args, form, strict=True)
    )


def _near(a: Any, b: float) -> bool:
    return isinstance(a, int | float) and math.isclose(a, b, rel_tol=1e-6)


def activate_images(graph: fx.Graph) -> None:
    """Serves activations that no convolution took, and whose gradient is asked for."""
    _activate(graph, lambda found: not is_rows(value(found.y)) or not found.name.startswith("gelu"))


def activate_rows(graph: fx.Graph) -> None:
    """Serves those of what linear layers give that were not served by now."""
    _activate(graph, lambda found: is_rows(value(found.y)))


def _activate(graph: fx.Graph, chosen: Callable[[Found], bool]) -> None:
    for node in [node for node in graph.nodes if node.target in _KINDS]:
        x: Any = node.args[0]
        found = activation_after(x)
        if found is None or not found.keeps or not chosen(found):
            continue
        if all(is_channels_last(value(n)) for n in (x, node)) or all(
            is_rows(value(n)) for n in (x, node)
        ):
            args = (*_terms(x), found.activation)
            found.replace(insert(node, calls.activate, args, found.results, node))


def _terms(x: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """x, or the two images whose sum it is."""
    if x.target is not ADD or x.kwargs:
        return x, None
    a, b = x.args
    same = all(is_channels_last(value(t)) and value(t).shape == value(x).shape for t in (a, b))
    return (a, b) if same else (x, None)  # type: ignore[return-value]
