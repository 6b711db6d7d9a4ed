"""Dense stacks: linear layers with activations between them, attacked in one call (dense_pgd_).

What is such a stack is read off the modules here, and off a captured graph in dense_graph.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fastadv import ops
from fastadv.balls import L1, L2, Linf
from fastadv.engine import inductor
from fastadv.engine.pool import pool
from fastadv.engine.reference_activations import NAMES
from fastadv.engine.reference_dense import pack, pack_bias
from fastadv.engine.weights import Weights
from fastadv.rules import Steepest

if TYPE_CHECKING:
    from fastadv.attack import Attack
    from fastadv.problem import Problem

_BALLS = {Linf: 0, L2: 1, L1: 2}


@dataclass(frozen=True)
class Layer:
    """activation(weight @ x + bias); `activation` is a number in NAMES, `leak` leaky_relu's."""

    weight: Tensor  # (outputs, inputs)
    bias: Tensor | None
    activation: int = 0
    leak: float = 0.0


Layers = tuple[Layer, ...]


def describe(layers: Layers) -> str:
    """784-512-10 (relu)."""
    sizes = [layers[0].weight.shape[1], *(len(layer.weight) for layer in layers)]
    names = sorted({NAMES[layer.activation] for layer in layers if layer.activation})
    return "-".join(map(str, sizes)) + (f" ({', '.join(names)})" if names else "")


def only_linears(model: nn.Module) -> str | None:
    """None if nn.Linear alone has weights in the model, and it has some; else what stands against
    it."""
    named = [(m, p) for m in model.modules() for p in m.parameters(recurse=False)]
    other = next((type(m).__name__ for m, _ in named if not isinstance(m, nn.Linear)), None)
    if other is not None:
        return f"weights of {other} are in it"
    return None if named else "it has no weights"


def activation_of(module: nn.Module) -> tuple[int, float] | None:
    """(number, leak) of a module that is an activation."""
    if type(module) is nn.LeakyReLU:
        return NAMES.index("leaky_relu"), module.negative_slope
    if type(module) is nn.GELU:
        tanh = module.approximate == "tanh"
        return NAMES.index("gelu (tanh)" if tanh else "gelu"), 0.0
    simple = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}
    name = simple.get(type(module))
    return None if name is None else (NAMES.index(name), 0.0)


def read_modules(model: nn.Module, x: Tensor) -> Layers | str:
    """The layers of a stack made of torch's own modules, or why it is none.

    Nothing is kept from one call to the next: whatever was changed is seen.
    """
    if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return "there are global hooks"
    try:
        modules = list(_leaves(model))
    except ValueError as reason:
        return str(reason)
    layers: list[Layer] = []
    flat = x.dim() == 2
    for module in modules:
        if type(module) is nn.Flatten and module.start_dim == 1 and module.end_dim == -1:
            flat = True
        elif type(module) is nn.Linear and flat:
            layers.append(Layer(module.weight, module.bias))
        elif activation_of(module) and layers and not layers[-1].activation:
            layers[-1] = Layer(layers[-1].weight, layers[-1].bias, *activation_of(module) or ())
        elif type(module) is nn.Identity or (type(module) is nn.Dropout and not module.training):
            continue
        else:
            return f"{type(module).__name__} has no place in a dense stack there"
    return checked(layers, x)


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a forward runs, in order; ValueError where that is not known."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    if any(hooks) or module._backward_pre_hooks or "forward" in vars(module):
        raise ValueError(f"{type(module).__name__} has hooks")
    if type(module) is nn.Sequential:
        for child in module:
            yield from _leaves(child)
    elif next(module.children(), None) is not None:
        raise ValueError(f"{type(module).__name__} is no plain sequence of layers")
    else:
        yield module


def checked(layers: Sequence[Layer], x: Tensor) -> Layers | str:
    """The layers, if the kernel takes them and they fit each other and x."""
    if not layers:
        return "there is no linear layer"
    size = x[0].numel()
    for layer in layers:
        for t in (layer.weight, layer.bias):
            if t is not None and (t.dtype != torch.float32 or t.device != x.device):
                return (
                    f"its weights are {str(t.dtype)[6:]} on {t.device}, not float32 on {x.device}"
                )
            if t is not None and type(t) not in (Tensor, nn.Parameter):
                return f"its weights are of type {type(t).__name__}"
        if layer.weight.shape[1] != size:
            return f"a layer takes {layer.weight.shape[1]} inputs and gets {size}"
        size = len(layer.weight)
    return tuple(layers)


def why_not(attack: Attack, problem: Problem) -> str | None:
    """Why an attack on a stack takes its steps one by one, or None."""
    x, objective = problem.x, problem.objective
    if type(attack.rule) is not Steepest:
        return f"its rule is {type(attack.rule).__name__}"
    if attack.stop is not None:
        return f"it stops at {attack.stop!r}"
    if objective.head_number is None:
        return f"its objective {objective} has no kernel"
    if type(problem.ball) not in _BALLS:
        return f"its ball is {type(problem.ball).__name__}"
    return "x is not contiguous" if not x.is_contiguous() else why_not_data(x)


def why_not_data(x: Tensor) -> str | None:
    """Why the kernels do not take x, or None."""
    if x.dtype != torch.float32 or not (x.device.type == "cpu" or inductor.serves(x)):
        return "x is not float32 on the CPU or CUDA"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast is on"
    if inductor.serves(x):
        return None if ops.backend().cuda == "triton" else "Triton does not serve"
    return None if ops.backend().is_native else "there are no compiled kernels"


def why_not_on_device(layers: Layers, problem: Problem, bfloat16: bool) -> str | None:
    """Why Triton's kernel does not take what why_not() lets pass in one launch, or None."""
    launch: Any = import_module("fastadv.kernels.dense_launch")  # imports Triton, 1 s
    sizes = [layers[0].weight.shape[1], *(len(layer.weight) for layer in layers)]
    activations = [layer.activation for layer in layers]
    leaks = [layer.leak for layer in layers]
    norm = _BALLS[type(problem.ball)]
    why: str | None = launch.why_not(sizes, activations, leaks, norm, bfloat16)
    return why


Stack = tuple[
    list[Tensor], list[Tensor], list[Tensor], list[int], list[int], list[float]
]  # weights, gradients, biases, sizes, activations, leaks: as the ops take them


def packed(layers: Layers, weights: Weights, bfloat16: bool) -> Stack:
    """The stack as the kernels read it, its weights packed again where they changed; on a device
    at each attack, since to find out would wait for it."""
    matrices: tuple[list[Tensor], list[Tensor]] = ([], [])
    with torch.no_grad(), weights.lock:
        for i, layer in enumerate(layers):
            w = layer.weight.detach()
            if inductor.serves(w):
                matrices[0].append(pack(w, bfloat16))
                matrices[1].append(matrices[0][-1])  # the launcher reads one of them
                continue
            counts = (weights.count(f"dense weight {i}", w),)
            for j, matrix in enumerate((w, w.T)):
                compute = partial(pack, matrix, bfloat16)
                matrices[j].append(weights.value(("dense", i, j, bfloat16), counts, compute))
        biases = [pack_bias(layer.bias, layer.weight) for layer in layers]
    return (
        *matrices,
        biases,
        [layers[0].weight.shape[1], *(len(layer.weight) for layer in layers)],
        [layer.activation for layer in layers],
        [layer.leak for layer in layers],
    )


class _Pass(torch.autograd.Function):
    """The logits of a stack, and the gradient by its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stack: Stack) -> Tensor:
        flat = x.detach().reshape(len(x), -1).contiguous()
        logits = x.new_empty(len(x), stack[3][-1])
        widths = sum(len(bias) for bias in stack[2])
        slopes = pool.empty((len(x), widths), torch.float32)
        torch.ops.fastadv.dense_pass_(logits, slopes, flat, *stack, False)
        ctx.save_for_backward(slopes)
        ctx.stack, ctx.shape = stack, x.shape
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        result = grad.new_empty(ctx.shape)
        torch.ops.fastadv.dense_pass_(result, slopes, grad.contiguous(), *ctx.stack, True)
        return result, None


def logits_of(x: Tensor, stack: Stack) -> Tensor:
    """The logits, differentiable by x."""
    logits: Tensor = _Pass.apply(x, stack)  # type: ignore[no-untyped-call]
    return logits


def climb(stack: Stack, attack: Attack, problem: Problem, x_adv: Tensor) -> Tensor:
    """All steps of a plain attack from x_adv: one call, or one a step size of a schedule."""
    assert isinstance(attack.rule, Steepest)
    x, rule, objective = problem.x, attack.rule, problem.objective
    problem.prepare(x.new_zeros(len(x), stack[3][-1]))
    labels, target, targeted = problem.labels()
    x_adv, seen = x_adv.contiguous(), x.new_zeros(len(x))
    for size, run in groupby(rule.size(k) for k in range(attack.steps)):
        torch.ops.fastadv.dense_pgd_(
            x_adv, seen, x, ops.per_sample(size, x, "step_size"), problem.radius,
            problem.ball.bounds_for(x), _BALLS[type(problem.ball)], rule.top, len(list(run)),
            *stack, labels, target, objective.head_number, targeted,
        )  # fmt: skip
    problem.tally.forwards += len(x) * attack.steps
    problem.tally.seen.append(seen)
    return x_adv
