"""fa.compile: a model whose logits and input gradients come faster, for any attack."""

from __future__ import annotations

from torch import nn

from fastadv.engine import inductor, worth
from fastadv.engine.capture import Compiled
from fastadv.engine.dense_plan import require_precision


def compile(
    model: nn.Module,
    precision: str = "float32",
    report: bool = False,
    graph: bool | None = None,
) -> Compiled:
    """The model with the same logits and the same input gradients, faster: attack this one.

    model: any nn.Module that takes a tensor. Compiled at its first forward, for batches of 1, of 2
    to 15, and of 16 and more, and for each dtype, image size, mode and grad mode. Parameters and
    buffers are read at each forward, whoever wrote them; they get no gradient, and no statistic of
    a batch norm changes. To train, call fast.learn(x): the model's own forward, its gradients by
    the weights and its statistics, with convolutions on kernels of ours, in float32.
    precision: of the products: factors are rounded, sums are float32, and on the CPU so are the
    activations. `report()` says what it serves. Judge examples by the model itself, as fa.verify
    does.
    report: print what serves each layer whenever something is compiled.

    On the CPU a batch norm in eval mode is folded into its convolution; what gains nothing, a
    model without convolutions, or so small that a compiled call costs more than it saves, runs as
    plain torch. "bfloat16" serves convolutions and linear layers, and their gradients. It needs
    AVX-512 BF16: without it float32 serves, with a warning. A dense stack (nn.Linear with
    ReLU, leaky ReLU, GELU, tanh or sigmoid between) runs on its weights packed once, and fastadv's
    own attacks take all their steps in one call where they can; `report()` says so, or why not.

    On CUDA torch's inductor compiles the model, images channels last; "bfloat16" is what autocast
    makes of it. fastadv's own attacks replay a CUDA graph of one whole step. graph=None: where that
    cannot be captured a warning says why, and the attack goes step by step; True: it raises, as it
    does for x on the CPU; False: nothing is captured. The forward of a model in a graph runs in
    Python once, and what it does there beside tensors is not repeated.

    Raises TypeError for what is no nn.Module, ValueError for a precision that it cannot have.
    Backward raises RuntimeError where no input requires grad, and where it is taken twice over.
    """
    if isinstance(model, Compiled):
        return model
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
    if graph not in (None, True, False):
        raise TypeError(f"`graph` must be None, True or False, got {graph!r}")
    if not any(map(inductor.serves, model.parameters())):
        require_precision(precision, worth.why_bypass(model, precision))
    return Compiled(model, report, precision, graph)
