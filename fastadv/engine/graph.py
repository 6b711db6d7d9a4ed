"""Small tools on the joint graph, forward and backward, that AOTAutograd traces."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, fx

from fastadv.engine import calls
from fastadv.engine.reference import sign_bytes
from fastadv.engine.reference_activations import Activation, has_two_slopes

aten = torch.ops.aten

CONVOLUTION = aten.convolution.default
CONVOLUTION_BACKWARD = aten.convolution_backward.default
NORM = (aten._native_batch_norm_legit_no_training.default,)
NORM_BACKWARD = aten.native_batch_norm_backward.default
RELU = aten.relu.default
RELU_BACKWARD = aten.threshold_backward.default
ADD = aten.add.Tensor
_WEIGHT = re.compile(r"\._(?:parameters|buffers)\['[^']+'\]$")


def value(node: object) -> Any:
    """The fake tensor that a node was traced with, or None."""
    return node.meta.get("val") if isinstance(node, fx.Node) else None


def size_at(size: int | torch.SymInt, batch: int) -> float:
    """A size for a batch of so many samples: what of a graph is not known is that number alone."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return float(expression.subs(dict.fromkeys(expression.free_symbols, batch)))


def source_of(placeholder: fx.Node) -> str | None:
    """Where Dynamo found an input, if that is a parameter or a buffer of a module."""
    source = getattr(placeholder, "_dynamo_source", None)
    name = str(source.name if not callable(source.name) else source.name()) if source else ""
    return name if _WEIGHT.search(name) else None


def is_weight(node: object) -> bool:
    """A parameter or buffer of the model, or None: what a model may leave out."""
    return node is None or (isinstance(node, fx.Node) and "source" in node.meta)


def is_bias(bias: Tensor, outputs: int) -> bool:
    """As the kernels read it."""
    return bias.shape == (outputs,) and bias.is_contiguous() and bias.dtype == torch.float32


def is_image(t: object) -> TypeGuard[Tensor]:
    """A float32 image batch on the CPU, of known size but for the batch, in any order."""
    return (
        isinstance(t, Tensor)
        and t.dim() == 4
        and t.dtype == torch.float32
        and t.device.type == "cpu"
        and all(isinstance(size, int) for size in t.shape[1:])
    )


def is_channels_last(t: object) -> bool:
    """Such a batch, channels last."""
    return is_image(t) and t.is_contiguous(memory_format=torch.channels_last)


def is_rows(t: object) -> bool:
    """What a linear layer gives of float32 on the CPU, one row a sample: images of one pixel."""
    return (
        isinstance(t, Tensor)
        and t.dim() == 2
        and t.dtype == torch.float32
        and t.device.type == "cpu"
        and isinstance(t.shape[1], int)
        and t.is_contiguous()
    )


def kept_of(y: Any, activation: Activation) -> Tensor:
    """What is kept of an activation y (N, C, H, W), or (N, C): its slopes, or a bit a number."""
    n, channels, height, width = (*y.shape, 1, 1)[:4]
    if not has_two_slopes(int(activation[0])):
        slopes: Tensor = y.new_empty((n, height, width, channels))
        return slopes
    bits: Tensor = y.new_empty((n, height, width, sign_bytes(channels)), dtype=torch.uint8)
    return bits


def insert(
    before: fx.Node, target: Callable[..., Any], args: tuple[Any, ...], val: object, like: fx.Node
) -> fx.Node:
    """A call of `target` placed before a node; `like` lends its place in the model."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args)
    kept = ("nn_module_stack", "stack_trace", "partitioner_tag", "seq_nr")
    node.meta = {k: v for k, v in like.meta.items() if k in kept}
    node.meta["val"] = val
    return node


def item(node: fx.Node, index: int) -> fx.Node:
    """node[index] of a node with several results."""
    for user in node.users:
        if user.target is operator.getitem and user.args[1] == index:
            return user
    following = node.next
    return insert(following, operator.getitem, (node, index), value(node)[index], node)


def only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].args.count(node) == 1 else None


def residual_after(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(the sum, the other term) if all that reads a node is the sum with a tensor of its shape."""
    user = only_user(node)
    if user is None or user.target is not ADD or user.kwargs or len(user.args) != 2:
        return None
    other = user.args[1] if user.args[0] is node else user.args[0]
    like, term = value(node), value(other)
    if not isinstance(other, fx.Node) or not is_channels_last(term):
        return None
    return (user, other) if term.shape == like.shape else None


class Tail(NamedTuple):
    """What a gradient takes into its own pass."""

    last: fx.Node
    residual: fx.Node | None
    slopes: fx.Node | None  # of the activation before it
    leak: float
    said: str


def gradient_tail(gradient: fx.Node) -> Tail:
    """What follows a gradient, and a kernel can do with it."""
    last, residual, said = gradient, None, ""
    if found := residual_after(last):
        last, residual = found
        said += " + residual"
    user = only_user(last)
    if user is not None and user.target is calls.times_slopes and user.args[:2] == (last, None):
        slopes, leak, *more = user.args[2:]
        if not more:
            assert isinstance(slopes, fx.Node)
            assert isinstance(leak, float)
            return Tail(user, residual, slopes, leak, said + " + slopes")
    return Tail(last, residual, None, 0.0, said)


def drop_detaches(graph: fx.Graph) -> None:
    """Autograd's detach() is nothing in a graph that is run without autograd."""
    for node in graph.nodes:
        if node.target is aten.detach.default and isinstance(node.args[0], fx.Node):
            node.replace_all_uses_with(
                node.args[0], delete_user_cb=lambda user: user.op != "output"
            )


def drop_clones(graph: fx.Graph) -> None:
    """What was kept before a layer wrote on it in place is, in a graph without writes, itself."""
    if any(writes(node) for node in graph.nodes):
        return
    for node in list(graph.nodes):
        if node.target is not aten.clone.default or set(node.kwargs) - {"memory_format"}:
            continue
        order = node.kwargs.get("memory_format", torch.preserve_format)
        source = node.args[0]
        if order is torch.preserve_format and isinstance(source, fx.Node) and is_fresh(source):
            node.replace_all_uses_with(source, delete_user_cb=lambda user: user.op != "output")
            if not node.users:  # or it would count as one that reads the source
                graph.erase_node(node)


def writes(node: fx.Node) -> bool:
    """Whether an op writes on what it is given."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def is_fresh(node: fx.Node) -> bool:
    """Whether it is memory of its own, which an op of torch's has just computed."""
    maker: Any = node.args[0] if node.target is operator.getitem else node
    schema = getattr(maker.target, "_schema", None)
    return schema is not None and not any(result.alias_info for result in schema.returns)


def relax_views(graph: fx.Graph) -> None:
    """A view of a tensor whose layout a rewrite changed becomes a copy where it must."""
    for node in graph.nodes:
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
