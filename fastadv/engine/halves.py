"""A captured gradient's two halves, called as they are: between the steps of an attack nothing
changes that Dynamo's guards, AOTAutograd's wrappers or autograd would have to look at again.

On a net for MNIST they cost as much as its kernels do for one sample. One forward also serves many
backwards at once: DeepFool's gradients of all classes at a sample.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fastadv.engine.formats import is_gray, is_image
from fastadv.engine.plan import Plans
from fastadv.model import Pull

if TYPE_CHECKING:
    from fastadv.engine.backend import Runner

_PART = re.compile(r"_(modules|parameters|buffers)\['([^']+)'\]")
_PLACE = re.compile(rf"L\['module'\](?:\.{_PART.pattern})+")  # of a registered weight
_X, _SIZE = "x", "size"


@dataclass(frozen=True)
class _Saved:
    """What the backward is given in one place: an output of the forward, or the tangent."""

    output: int | None  # None: the tangent
    batched: bool = False  # its first size is the batch's
    count: Any = None  # a number's formula in the batch's size, where it is one


class Halves:
    """forward: (inputs) to [logits, *saved]; backward: (*saved, tangent) to gradients by inputs."""

    def __init__(
        self,
        forward: Runner,
        backward: fx.GraphModule,
        inputs: Sequence[str],  # "x", "size", or where a weight stands
        saved: Sequence[_Saved],
        size: Any,  # the symbol of the batch's; None: it is 1
    ) -> None:
        self.forward, self.backward = forward, backward
        self.inputs, self.saved, self.size = inputs, saved, size
        self.at = inputs.index(_X)
        self.plans = Plans(self)
        self._agreed: dict[tuple[int, int], bool] = {}

    def vjp(self, module: nn.Module, x: Tensor, rows: int = 1) -> tuple[Tensor, Pull]:
        """(logits (N, classes) at x, their pullback), of `rows` tangents a sample, or of others:
        by a plan or, where there is none, layer by layer; the same bits."""
        planned = self.plans.vjp(module, x, rows)
        return planned if planned is not None else self.by_layer(module, x)

    def by_layer(self, module: nn.Module, x: Tensor) -> tuple[Tensor, Pull]:
        """vjp, each kernel called from Python."""
        outputs = self.forward(self.inputs_of(module, x))

        def pull(tangents: Tensor) -> Tensor:
            self.require_rows(len(tangents))
            args = [self.saved_as(one, outputs, tangents, len(x)) for one in self.saved]
            found = self.backward(*args)
            grad: Tensor = found[self.at]
            return _as_given(x, grad)

        logits: Tensor = outputs[0]
        return logits, pull

    def require_rows(self, tangents: int) -> None:
        """Raises where a graph of one sample is to take more tangents than one."""
        if self.size is None and tangents > 1:
            raise ValueError(f"`tangents` must be of one row, got {tangents}")

    def agree(
        self, module: nn.Module, forward: Callable[[Tensor], Any], x: Tensor, rows: int
    ) -> bool:
        """Whether the halves give what the forward gives, looked at once for a size: one that says
        another thing of a batch of N than of N * R, or mixes its samples, is found here."""
        case = len(x), rows
        if case not in self._agreed:
            with torch.random.fork_rng(devices=[]):
                y = forward(x)
                self._agreed[case] = isinstance(y, Tensor) and self.fit(module, x, y, rows)
        return self._agreed[case]

    def fit(self, module: nn.Module, x: Tensor, y: Tensor, rows: int) -> bool:
        """Whether the logits are y, and `rows` tangents at once give what one by one do."""
        logits, pull = self.by_layer(module, x)
        if logits.dim() != 2 or not _near(logits, y):
            return False
        if rows == 1 or self.size is None:
            return rows == 1
        tangents = torch.randn(len(x), rows, logits.shape[1], generator=torch.Generator())
        tangents = tangents.to(logits)
        together = pull(tangents.flatten(0, 1)).view(len(x), rows, -1)
        apart = torch.stack([pull(one).flatten(1) for one in tangents.unbind(1)], 1)
        return _near(together, apart)

    def inputs_of(self, module: nn.Module, x: Tensor) -> list[Any]:
        """What the forward is given."""
        return [self._input(module, source, x) for source in self.inputs]

    def _input(self, module: nn.Module, source: str, x: Tensor) -> Any:
        if source == _SIZE:
            return len(x)
        return _as_rows(x) if source == _X else weight_at(module, source)

    def saved_as(self, one: _Saved, outputs: Sequence[Any], tangents: Tensor, n: int) -> Any:
        """What the backward is given of a forward of n samples."""
        if one.output is None:
            return tangents.contiguous()
        if one.count is not None:
            rows = len(tangents)  # sympy takes half a millisecond to put it in
            return rows if one.count == self.size else int(one.count.subs(self.size, rows))
        kept = outputs[one.output]
        rows = len(tangents) // n
        return kept.repeat_interleave(rows, 0) if one.batched and rows > 1 else kept


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its forward."""
    hooks = torch.nn.modules.module
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        or module._backward_pre_hooks or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    )  # fmt: skip


def autocasts() -> bool:
    """Whether autocast is on: it would cast inside a graph that was captured with its casts."""
    return bool(torch._C._is_any_autocast_enabled())


def _near(found: Tensor, expected: Tensor) -> bool:
    """Equal but for roundings of float32."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    error, size = (found - expected).norm(), expected.norm()
    return bool(error <= 1e-4 * size)


def weight_at(module: nn.Module, source: str) -> Tensor:
    """The parameter or buffer that Dynamo found there, as it is now."""
    found: Any = module
    for kind, name in _PART.findall(source):
        found = getattr(found, f"_{kind}")[name]
    weight: Tensor = found
    return weight.detach()


def joined(
    forward: Runner,
    graph: fx.Graph,  # the forward's
    backward: fx.GraphModule,
    sources: Sequence[str | None],
) -> Halves | None:
    """The halves of a gradient by x alone; None where they are not as simple as that."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != len(sources):
        return None
    kinds = [_kind(node, source) for node, source in zip(inputs, sources, strict=True)]
    if kinds.count(_X) != 1 or None in kinds:
        return None
    shape = inputs[kinds.index(_X)].meta["val"].shape
    size = shape[0].node.expr if isinstance(shape[0], torch.SymInt) else None
    if any(isinstance(s, torch.SymInt) for s in shape[1:]) or (size is None and shape[0] != 1):
        return None
    (outputs,) = next(node for node in graph.nodes if node.op == "output").args
    places = {o.name: i for i, o in enumerate(outputs) if isinstance(o, fx.Node)}
    saved = []
    for node in (node for node in backward.graph.nodes if node.op == "placeholder"):
        one = _saved_as(node, places, outputs, size)
        if one is None:
            return None
        saved.append(one)
    if sum(one.output is None for one in saved) != 1:
        return None
    return Halves(forward, backward, [str(kind) for kind in kinds], saved, size)


def _kind(node: fx.Node, source: str | None) -> str | None:
    if source is not None:
        return source if _PLACE.fullmatch(source) else None
    val = node.meta.get("val")
    if isinstance(val, Tensor):
        return _X
    return _SIZE if isinstance(val, torch.SymInt) else None


def _saved_as(
    node: fx.Node, places: dict[str, int], outputs: Sequence[Any], size: Any
) -> _Saved | None:
    if str(node.target).startswith("tangents"):
        return _Saved(None)
    if node.name not in places:
        return None
    place = places[node.name]
    val = outputs[place].meta.get("val")
    if isinstance(val, torch.SymInt):
        return _Saved(place, count=val.node.expr) if val.node.expr.free_symbols <= {size} else None
    if not isinstance(val, Tensor):
        return None
    sizes = [s.node.expr if isinstance(s, torch.SymInt) else None for s in val.shape]
    if not any(s is not None for s in sizes):
        return _Saved(place)
    return _Saved(place, True) if sizes[0] == size and not any(sizes[1:]) else None


def _as_rows(x: Tensor) -> Tensor:
    if is_gray(x):
        return x.permute(0, 2, 3, 1).contiguous()
    return x.contiguous(memory_format=torch.channels_last) if is_image(x) else x.contiguous()


def _as_given(x: Tensor, grad: Tensor) -> Tensor:
    if is_gray(x):
        grad = grad.permute(0, 3, 1, 2)
    if not x.is_contiguous():
        return grad
    return grad.contiguous().flatten().view(len(grad), *x.shape[1:])
