"""The rewrites: which convolutions of a graph get kernels of our own, and what is fused.

A convolution takes what follows it, bias, residual and activation, into its own pass; a ReLU leaves
one bit a number for its gradient, others their slopes; a convolution's gradient takes the residual
sum and these. What no kernel serves stays as ATen runs it, but for the gradients of weights, which
nobody asks for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from fastadv.engine import calls, spread
from fastadv.engine.activations import activate_images, activate_rows, activation_after
from fastadv.engine.attention import attend_heads
from fastadv.engine.channels_last import keep_strides, lay_out_images
from fastadv.engine.choice import choose, geometry_of, is_gradient, weight_of
from fastadv.engine.fold import fold_norms
from fastadv.engine.gelu import fuse_linears
from fastadv.engine.graph import (
    ADD,
    CONVOLUTION,
    CONVOLUTION_BACKWARD,
    drop_clones,
    drop_detaches,
    gradient_tail,
    insert,
    is_channels_last,
    item,
    relax_views,
    residual_after,
    value,
)  # fmt: skip
from fastadv.engine.layout import lift_linears, tidy
from fastadv.engine.linear import serve_linears
from fastadv.engine.means import mean_pixels
from fastadv.engine.narrow import narrow_between
from fastadv.engine.norms import normalize_tokens
from fastadv.engine.pooling import pool_maxima
from fastadv.engine.preactivation import activate_norms
from fastadv.engine.reference_direct import depthwise_weights, direct_weights
from fastadv.engine.reference_winograd import PLAIN, STRIDED, STRIDED_GRADIENT, transformed_shape
from fastadv.engine.report import Row
from fastadv.engine.speeds import DEPTHWISE, DIRECT, WINOGRAD
from fastadv.engine.spread import spread_bias, spread_weights, spreads


def rewrite(graph: fx.Graph, native: bool, bfloat16: bool, batch: int) -> list[Row]:
    """Rewrites a graph in place, and says what serves its layers; bfloat16: the products'. batch:
    the size that the kernels are chosen for."""
    relax_views(graph)
    drop_detaches(graph)
    drop_clones(graph)
    if native:
        lay_out_images(graph)
    left = fold_norms(graph)
    convolutions = [node for node in graph.nodes if node.target is CONVOLUTION]
    rows = []
    for conv in convolutions:
        kernel, why, call = choose(conv, native, bfloat16, batch)
        name, shape = layer_of(conv.args[1] if "norm" not in conv.meta else conv.meta["norm"][0])
        folded = ", norm folded" if "norm" in conv.meta else ""
        fused = _serve(conv, kernel, bfloat16) if kernel else ""
        served = served_by(kernel, bfloat16)
        rows.append(Row(name, f"conv {shape}{folded}{fused}", served, why, call))
    passes = activate_norms(list(left)) if native else {}
    for node, reason in left.items():
        name, _ = layer_of(node.args[1] or node.args[3])
        found = passes.get(node)
        row = (f"batch norm + {found.name}", "one pass") if found else ("batch norm", "ATen")
        rows.append(Row(name, *row, reason))
    if native:
        activate_images(graph)
    for node in [node for node in graph.nodes if node.target is CONVOLUTION_BACKWARD]:
        rows.append(_gradient(node, native, bfloat16, batch))
    if native:
        rows += pool_maxima(graph) + mean_pixels(graph)
        tidy(graph)
        rows += [_linear_row(*found, bfloat16) for found in serve_linears(graph, bfloat16, batch)]
        lift_linears(graph)
        fuse_linears(graph)
        activate_rows(graph)
        rows += attend_heads(graph, bfloat16, batch) + normalize_tokens(graph)
        if bfloat16:
            narrow_between(graph)
        _add_into_slopes(graph)
    graph.eliminate_dead_code()
    keep_strides(graph)
    return rows


def _linear_row(weight: fx.Node, gradient: bool, why_not: str | None, bfloat16: bool) -> Row:
    name, shape = layer_of(weight)
    op = f"gradient {shape}" if gradient else f"linear {shape}"
    return Row(name, op, served_by(None if why_not else DIRECT, bfloat16), why_not or "packed once")


def served_by(kernel: str | None, bfloat16: bool) -> str:
    half = bfloat16 and kernel != DEPTHWISE
    return "ATen" if kernel is None else kernel + (", bfloat16" if half else "")


def layer_of(weight: object) -> tuple[str, str]:
    """The dotted name of the layer that a weight belongs to, and the weight's shape."""
    source = weight.meta.get("source", "") if isinstance(weight, fx.Node) else ""
    shape = "x".join(str(size) for size in getattr(value(weight), "shape", ()))
    return ".".join(re.findall(r"_modules\['([^']+)'\]", source)) or "(unnamed)", shape


def _packed(conv: fx.Node, kernel: str, bfloat16: bool) -> fx.Node:
    """The weights as a kernel reads them: a function of weights alone."""
    gradient, (weight, scale) = is_gradient(conv), weight_of(conv)
    w = value(weight)
    first = next(node for node in conv.graph.nodes if node.op != "placeholder")
    forward = next((n for n in conv.graph.nodes if n.target is CONVOLUTION), first)
    pack: Callable[..., Tensor]
    args: tuple[Any, ...]
    if kernel == WINOGRAD:
        outputs, channels = (w.shape[1], w.shape[0]) if gradient else (w.shape[0], w.shape[1])
        shape, dtype = transformed_shape(outputs, channels, bfloat16)
        like, pack = w.new_empty(shape, dtype=dtype), calls.winograd_weights
        args = (weight, scale, gradient, geometry_of(conv)[1] != (1, 1), bfloat16)
    elif kernel == DEPTHWISE:
        pack, args, like = depthwise_weights, (weight, scale), depthwise_weights(w, None)
    elif size := _spread_over(conv, kernel):
        pack, args = spread_weights, (weight, scale, gradient, bfloat16, size)
        like = spread_weights(w, None, gradient, bfloat16, size)
    else:
        pack = direct_weights
        args = (weight, scale, gradient, bfloat16)
        like = direct_weights(w, None, gradient, bfloat16)
    place = insert(first, pack, args, like, forward)
    if scale is not None:  # the scale itself stands after `first`
        scale.append(place)
    return place


def _spread_over(conv: fx.Node, kernel: str) -> tuple[int, int] | None:
    """The pixels of images that are so few that a convolution is one product of them all."""
    if kernel in (WINOGRAD, DEPTHWISE):
        return None
    size: Any = tuple(value(conv.args[0]).shape[2:])
    return size if spreads(geometry_of(conv), size, *value(weight_of(conv)[0]).shape[:2]) else None


def _spread_bias(conv: fx.Node, bias: Any, pixels: int) -> fx.Node | None:
    if bias is None:
        return None
    like = spread_bias(value(bias), pixels)
    return insert(conv, spread_bias, (bias, pixels), like, conv)


def _serve(conv: fx.Node, kernel: str, bfloat16: bool) -> str:
    """Puts the kernel in the place of a convolution and what it fuses; says what that was."""
    x, _, bias = conv.args[:3]
    y, last, residual, fused = value(conv), conv, None, ""
    found = residual_after(conv)
    if found:
        last, residual = found
        fused += " + residual"
    activated = activation_after(last)
    packed = _packed(conv, kernel, bfloat16)
    _, stride, padding, _ = geometry = geometry_of(conv)
    size: Any = tuple(y.shape[2:])
    both: Callable[..., Any]
    alone: Callable[..., Any]
    place: tuple[Any, ...]
    if kernel == WINOGRAD:
        form = PLAIN if stride == (1, 1) else STRIDED
        both, alone, place = calls.convolve_activated, calls.convolve, (size, padding[0], form)
    elif _spread_over(conv, kernel):
        both, alone, place = spread.convolve_activated, spread.convolve, (size,)
        bias = _spread_bias(conv, bias, size[0] * size[1])
    else:
        both, alone = calls.convolve_activated_directly, calls.convolve_directly
        place = size, geometry
    args = (x, packed, bias, residual, y.shape[1], *place)
    if activated is not None:
        args = (*args, activated.activation, activated.keeps)
        activated.replace(insert(activated.y, both, args, activated.results, conv))
        return f"{fused} + {activated.name}"
    last.replace_all_uses_with(insert(last, alone, args, y, conv))
    return fused


def _gradient(node: fx.Node, native: bool, bfloat16: bool, batch: int) -> Row:
    """A convolution's gradient by its input alone, with the residual sum and the slopes after."""
    grad, x, weight = node.args[:3]
    source = node.meta["norm"][0] if "norm" in node.meta else weight
    name, shape = layer_of(source)
    if list(node.args[10]) != [True, False, False]:  # type: ignore[arg-type]
        return Row(name, f"gradient {shape}", "ATen", "its weights ask for a gradient")
    result, like = item(node, 0), value(x)
    kernel, why, place = choose(node, native, bfloat16, batch)
    if kernel is None and not all(isinstance(size, int) for size in like.shape[1:]):
        return Row(name, f"gradient {shape}", "ATen", "its image's size is not known", place)
    if kernel is None:
        args = (grad, weight, tuple(like.shape[1:]), *node.args[4:10])
        y = value(result)
        result.replace_all_uses_with(insert(result, calls.input_gradient, args, y, node))
        return Row(name, f"gradient {shape}", "ATen", why, place)
    packed = _packed(node, kernel, bfloat16)
    last, residual, slopes, leak, fused = gradient_tail(result)
    run: Callable[..., Any]
    call: tuple[Any, ...]
    channels, size = like.shape[1], tuple(like.shape[2:])
    _, stride, padding, _ = geometry = geometry_of(node)
    if kernel == WINOGRAD:
        form = (2 - padding[0], PLAIN) if stride == (1, 1) else (padding[0], STRIDED_GRADIENT)
        run, call = calls.convolve_gradient, (*form, leak)
    elif _spread_over(node, kernel):
        run, call = spread.gradient, (leak,)
    else:
        run, call = calls.fold, (geometry, leak)
    args = (grad, packed, residual, slopes, channels, size, *call)
    last.replace_all_uses_with(insert(last, run, args, value(result), node))
    return Row(name, f"gradient {shape}{fused}", served_by(kernel, bfloat16), why, place)


def _add_into_slopes(graph: fx.Graph) -> None:
    """times_slopes(a + b) reads both itself."""
    for node in [node for node in graph.nodes if node.target is calls.times_slopes]:
        total = node.args[0]
        if not isinstance(total, fx.Node) or total.target is not ADD or total.kwargs:
            continue
        terms = [value(term) for term in total.args]
        same = all(is_channels_last(t) and t.shape == terms[0].shape for t in terms)
        if same and len(total.users) == 1:
            node.args = (*total.args, *node.args[2:])
