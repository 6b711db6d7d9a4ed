"""A dense stack read off the graph that Dynamo captures: any module class may hold one.

The graph is captured, and never run: what stands in for it notes the weights that it is called
with. So Dynamo's own guards tell when anything that the module reads has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd

from fastadv.engine.dense import Layer, Layers, checked
from fastadv.engine.graph import aten, value
from fastadv.engine.reference_activations import NAMES

_SIMPLE = {aten.relu.default: "relu", aten.tanh.default: "tanh", aten.sigmoid.default: "sigmoid"}
_SAME = (
    aten.clone.default, aten.alias.default, aten.detach.default, aten.view.default,
    aten._unsafe_view.default, aten.reshape.default,
)  # fmt: skip

# A layer of the graph: its weight, its bias, its activation's number and leak.
Link = tuple[fx.Node, fx.Node | None, int, float]


class _NoStack(Exception):
    """Why a graph is no dense stack."""


class GraphReader:
    """Reads the layers of a model for one kind of input, under Dynamo's guards."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Any]) -> None:
        self._run: Callable[..., Any] = torch.compile(run, backend=self._capture, fullgraph=True)
        self._found: dict[str, Layers | str] = {}
        self._failed: str | None = None

    def __call__(self, model: nn.Module, x: Tensor) -> Layers | str:
        """The layers, or why they are none. A failure is kept: it took a compile to find."""
        if self._failed is None:
            try:
                self._run(model, x)
            except Exception as error:  # Dynamo has many, and each only means the slower way
                reason = next((e for e in _causes(error) if isinstance(e, _NoStack)), None)
                self._failed = str(reason) if reason else "it is not captured as one graph"
        return self._failed or self._found.pop("layers")

    def _capture(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = aot_autograd(fw_compiler=self._stand_in)(graph, inputs)
        return compiled

    def _stand_in(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        places = [node for node in module.graph.nodes if node.op == "placeholder"]
        start, chain = _chain(module.graph.output_node())

        def note(given: list[Any]) -> list[Tensor]:
            tensors = dict(zip(places, given, strict=True))
            given.clear()
            x = tensors[start]
            layers = [
                Layer(tensors[weight], None if bias is None else tensors[bias], number, leak)
                for weight, bias, number, leak in chain
            ]
            self._found["layers"] = checked(layers, x)
            return [x.new_empty(len(x), len(layers[-1].weight))]

        note._boxed_call = True  # type: ignore[attr-defined]
        return note


def _causes(error: BaseException | None) -> list[BaseException]:
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__
    return causes


def _chain(output: fx.Node) -> tuple[fx.Node, list[Link]]:
    """(x, the layers in their order), read from the logits back to x."""
    results = output.args[0]
    if not isinstance(results, (tuple, list)) or len(results) != 1:
        raise _NoStack("it has other results than the logits")
    node, links, after = _node(results[0]), [], (0, 0.0)
    while node.op != "placeholder":
        if node.target in _SAME:
            if not _same_rows(node):
                raise _NoStack(f"{node.target} changes the rows")
        elif (activation := _activation(node)) is not None:
            if after[0]:
                raise _NoStack("two activations follow each other")
            after = activation
        else:
            links.append((*_weights(node), *after))
            after = (0, 0.0)
            node = _node(node.args[-2])
            continue
        node = _node(node.args[0])
    if any(node in link for link in links):
        raise _NoStack("x is a weight in it")
    if after[0] or not links:
        raise _NoStack("an activation comes first" if links else "there is no linear layer")
    return node, links[::-1]


def _node(argument: object) -> fx.Node:
    if not isinstance(argument, fx.Node):
        raise _NoStack("a part of it is a constant")
    return argument


def _same_rows(node: fx.Node) -> bool:
    """Whether the result is its argument with each sample flat, or as it was."""
    before, now = value(node.args[0]), value(node)
    return bool(now.dim() == 2 and now.shape[1] == before.shape[1:].numel())


def _activation(node: fx.Node) -> tuple[int, float] | None:
    if node.target in _SIMPLE:
        return NAMES.index(_SIMPLE[node.target]), 0.0
    if node.target is aten.leaky_relu.default:
        leak = node.args[1] if len(node.args) > 1 else 0.01
        return NAMES.index("leaky_relu"), float(leak)  # type: ignore[arg-type]
    if node.target is aten.gelu.default:
        tanh = node.kwargs.get("approximate", "none") == "tanh"
        return NAMES.index("gelu (tanh)" if tanh else "gelu"), 0.0
    return None


def _weights(node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """(weight, bias) of a linear layer."""
    plain = node.target in (aten.addmm.default, aten.mm.default) and not node.kwargs
    turned = node.args[-1] if plain else None
    if not isinstance(turned, fx.Node) or turned.target is not aten.t.default:
        raise _NoStack(f"{node.target} has no place in a dense stack")
    weight = _node(turned.args[0])
    bias = _node(node.args[0]) if node.target is aten.addmm.default else None
    if weight.op != "placeholder" or (
        bias is not None and value(bias).shape != value(node).shape[1:]
    ):
        raise _NoStack("a weight is computed, or a bias has another shape than the outputs")
    if bias is not None and bias.op != "placeholder":
        raise _NoStack("a bias is computed")
    return weight, bias
