"""fa.compile: a model whose logits and input gradients come faster, for any attack."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fastadv.engine import worth
from fastadv.engine.dense import Layers
from fastadv.engine.dense_plan import Climb, Plans, require_precision
from fastadv.engine.loans import detached, quiet
from fastadv.engine.report import Report, Row
from fastadv.engine.weights import Weights
from fastadv.ops import backend

if TYPE_CHECKING:
    from fastadv.attack import Attack
    from fastadv.problem import Problem

_ANY = 1 << 40
_BATCHES = ((1, 1), (2, 15), (16, _ANY))  # one compile each
Key = tuple[Hashable, ...]
_numbers = itertools.count()


class Compiled(nn.Module):
    """`module`, run on kernels that compute gradients with respect to the input alone.

    An ordinary module under autograd: any library's attack runs on it. The parameters are seen as
    they are at each forward, and get no gradient: to train, use `.module`, the model itself.
    """

    module: nn.Module

    def __init__(
        self, module: nn.Module, print_report: bool = False, precision: str = "float32"
    ) -> None:
        super().__init__()
        self.module = module
        self.training = module.training
        self._weights = Weights()
        self._lock = RLock()
        self._variants: dict[Hashable, Callable[[nn.Module, Tensor], Any]] = {}
        self._graphs: dict[str, tuple[Row, ...]] = {}
        self._bypass = _why_bypass(module)
        self._plain: set[Hashable] = set()  # the variants that save less than a call costs
        self._plans = Plans(module, precision, self._weights)
        self._static_batch = False
        self._print = print_report
        # An outer torch.compile breaks its graph here. Not a decorator: it imports Dynamo, 1.5 s.
        self.forward = torch.compiler.disable(self._serve)  # type: ignore[no-untyped-call]

    def __reduce__(self) -> tuple[Any, ...]:
        return compile, (self.module, self._plans.precision)

    def report(self) -> Report:
        """What serves each layer, and why, for all that was compiled so far."""
        plain = self._bypass and not self._plans.found
        notes = [f"runs as plain torch: {self._bypass}"] if plain else []
        if not self._graphs and not self._bypass:
            notes.append("nothing is compiled before the first forward")
        if any(p.device.type != "cpu" for p in self.module.parameters()):
            notes.append("runs as plain torch: the engine has kernels for the CPU alone")
        notes += self._plans.notes
        if self._static_batch:
            notes.append("the model depends on the batch's size: each size is compiled")
        if size := self._weights.bytes:
            notes.append(f"packed weights: {size / 2**20:.1f} MiB")
        return Report(dict(self._graphs), tuple(notes))

    def attack_plan(self, attack: Attack, problem: Problem) -> Climb | None:
        """All steps of an attack as one call, from x_adv to its last iterate; None: there is none,
        and the attack goes step by step. `report()` says why."""
        with self._lock:
            return self._plans.attack(attack, problem, self._read_graph)

    def _read_graph(self, x: Tensor) -> Layers | str:
        from fastadv.engine.dense_graph import GraphReader

        with detached(self.module), torch.no_grad(), _limits():
            x = x.detach()
            key = "dense", self._key(x)
            if key not in self._variants:
                self._variants[key] = GraphReader(_fresh_run())
            layers: Layers | str = self._variants[key](self.module, self._marked(x))
        return layers

    def _serve(self, x: Tensor) -> Any:
        if not isinstance(x, Tensor):
            raise TypeError(f"`x` must be a torch.Tensor, got {type(x).__name__}")
        with self._lock:
            y: Any = self._plans.forward(x, self._read_graph)
            if y is None:
                y = self._forward(x)
        return y if x.requires_grad or not torch.is_grad_enabled() else self._guarded(y)

    def _forward(self, x: Tensor) -> Any:
        with detached(self.module):
            if self._is_plain(x):
                return self.module(x)
            return _in_format_of(x, self._run(_ChannelsLast.apply(x) if _is_image(x) else x))  # type: ignore[no-untyped-call]

    def _is_plain(self, x: Tensor) -> bool:
        if self._bypass or not len(x) or x.device.type != "cpu":
            return True
        return bool(self._plain) and _without_layout(self._key(x)) in self._plain

    def _run(self, x: Tensor) -> Any:
        key = self._key(x)
        variant = self._variants.get(key)
        if variant is not None:
            with _limits():
                return variant(self.module, self._marked(x))
        try:
            return self._compile(key, x)
        except torch._dynamo.exc.UserError:
            if self._static_batch:
                raise
            self._static_batch = True
            return self._run(x)

    def _key(self, x: Tensor) -> Key:
        """What a graph depends on; of the batch only which of _BATCHES it is in."""
        number = len(x) if self._static_batch else _batch_class(len(x))
        modes = tuple(module.training for module in self.module.modules())
        cast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        grad = torch.is_grad_enabled(), x.requires_grad, torch.is_inference_mode_enabled()
        return x.stride()[1:], number, tuple(x.shape[1:]), x.dtype, x.device, modes, cast, grad

    def _marked(self, x: Tensor) -> Tensor:
        """x, of which only the batch's size may differ in a variant."""
        x = x.view_as(x)
        least, most = _BATCHES[_batch_class(len(x))]
        if not self._static_batch and most != 1 and x.dim():
            torch._dynamo.mark_dynamic(x, 0, min=least, max=most)
        return x

    def _compile(self, key: Key, x: Tensor) -> Any:
        from fastadv.engine.backend import Compiler

        compiler = Compiler(self._weights, backend().is_native, self._plans.bfloat16)
        variant: Callable[..., Any] = torch.compile(_fresh_run(), backend=compiler)
        with _limits():
            y = variant(self.module, self._marked(x))
        name, saved = self._name(x, compiler.graphs), compiler.saving * len(x)
        cost = worth.GRAPH * compiler.graphs + worth.LAYER * len(compiler.rows)
        self._variants[key] = variant
        if saved < cost:
            self._plain.add(_without_layout(key))
            name += f", runs as plain torch: saves {saved:.1e} s, and a call costs {cost:.1e} s"
        self._graphs[name] = tuple(compiler.rows)
        if self._print:
            print(self.report())
        return y

    def _name(self, x: Tensor, graphs: int) -> str:
        least, most = (len(x), len(x)) if self._static_batch else _BATCHES[_batch_class(len(x))]
        upper = "any" if most == _ANY else str(most)
        batch = f"{least}" if least == most else f"{least} to {upper}"
        mode = "train" if self.training else "eval"
        grad = "with" if x.requires_grad else "without"
        shape = "x".join(str(size) for size in x.shape[1:])
        return f"batch {batch} of {shape}, {mode} mode, {grad} gradient, {graphs} graph(s)"

    def _guarded(self, y: Any) -> Any:
        if not any(p.requires_grad for p in self.module.parameters()):
            return y
        anchor = torch.empty(0, requires_grad=True)

        def guard(t: Any) -> Any:
            floating = isinstance(t, Tensor) and t.is_floating_point() and not t.requires_grad
            return _NoGradient.apply(t, anchor) if floating else t  # type: ignore[no-untyped-call]

        return tree_map(guard, y)


def _fresh_run() -> Callable[[nn.Module, Tensor], Any]:
    """module(x), of a code of its own: Dynamo keeps what it compiled with it, and counts it."""

    def run(module: nn.Module, x: Tensor) -> Any:
        return module(x)

    run.__code__ = run.__code__.replace(co_name=f"fastadv_run_{next(_numbers)}")
    return run


def compile(model: nn.Module, precision: str = "float32", report: bool = False) -> Compiled:
    """The model with the same logits and the same input gradients, faster: attack this one.

    model: any nn.Module that takes a tensor. Compiled at its first forward, for batches of 1, of 2
    to 15, and of 16 and more, and for each dtype, image size, mode and grad mode. Parameters and
    buffers are read at each forward, whoever wrote them; they get no gradient, and no statistic of
    a batch norm changes. A batch norm in eval mode is folded into its convolution. What gains
    nothing, a model without 3x3 convolutions, on another device, or so small that a compiled call
    costs more than it saves, runs as plain torch.
    precision: of the products. "bfloat16" serves the 3x3 convolutions, their gradients, and dense
    stacks: factors are rounded, sums are float32, and so are the activations. It needs AVX-512
    BF16: without it float32 serves, with a warning. `report()` says what it serves. Judge examples
    by the model itself, as fa.verify does.
    report: print what serves each layer whenever something is compiled.

    A dense stack (nn.Linear with ReLU, leaky ReLU, GELU, tanh or sigmoid between) runs on its
    weights packed once, and fastadv's own attacks take all their steps in one call where they can;
    `report()` says so, or why not.

    Raises TypeError for what is no nn.Module, ValueError for a precision that it cannot have.
    Backward raises RuntimeError where no input requires grad, and where it is taken twice over.
    """
    if isinstance(model, Compiled):
        return model
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
    require_precision(precision, model, convolves=_why_bypass(model) is None)
    return Compiled(model, report, precision)


@contextmanager
def _limits() -> Iterator[None]:
    """Dynamo's limit on recompiles raises: past it, it would run the model as it is, in silence."""
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True), quiet:
        yield


def _why_bypass(model: nn.Module) -> str | None:
    """Why nothing of a model is worth compiling, or None."""
    kernels = [p for p in model.parameters() if p.dim() == 4 and tuple(p.shape[2:]) == (3, 3)]
    if not kernels:
        return "it has no 3x3 convolution, and nothing else would change"
    if sum(p.numel() for p in kernels) < 512:
        return "its convolutions are too small"
    return None


def _without_layout(key: Key) -> Key:
    return key[1:]


def _batch_class(size: int) -> int:
    return 0 if size == 1 else 1 if size < 16 else 2


def _is_image(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_floating_point()


def _in_format_of(x: Tensor, y: Any) -> Any:
    """Outputs that are images, contiguous for a contiguous x, as the model itself gives them."""

    def match(t: Any) -> Any:
        return t.contiguous() if isinstance(t, Tensor) and t.dim() == 4 else t

    return tree_map(match, y) if x.is_contiguous() else y


class _ChannelsLast(torch.autograd.Function):
    """x in memory as the kernels read it, and its gradient as x is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.contiguous = x.is_contiguous()
        # With one channel, or one pixel, a format has many strides: these are the kernels'.
        if x.stride(1) == 1 and x.is_contiguous(memory_format=torch.channels_last):
            return x.view_as(x)
        return x.clone(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous() if ctx.contiguous else grad


class _NoGradient(torch.autograd.Function):
    """What stands in the place of a graph to the parameters, and says where there is one."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise RuntimeError(
            "a compiled model has gradients with respect to its input alone, and the input does "
            "not require grad: call x.requires_grad_(), or train the model itself, `fast.module`"
        )
