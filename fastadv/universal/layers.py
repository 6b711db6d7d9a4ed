"""A network's layers, watched by hooks: what data-free methods and layer-wise objectives excite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastadv.model import Model
from fastadv.problem import NO_GRADIENT, output
from fastadv.reference import compute_dtype, flat

Layers = Sequence[str | nn.Module] | None
NONE_RAN = "`layers` must run when `model` does, and none did: is it compiled?"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def chosen_layers(model: object, layers: Layers) -> list[nn.Module]:
    """The modules that `layers` names, every convolution for None. Raises for any other."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`model` must be a torch.nn.Module, whose layers can be watched, got a "
            f"{type(model).__name__}"
        )
    modules = dict(model.named_modules())
    if layers is None:
        found: list[nn.Module] = [m for m in modules.values() if isinstance(m, _CONVOLUTIONS)]
        if not found:
            raise ValueError("`layers` must be given for a model without convolutions, got None")
        return found
    if isinstance(layers, str) or not len(layers):
        raise ValueError(f"`layers` must be a list of modules or of their names, got {layers!r}")
    known = {id(m) for m in modules.values()}
    chosen = []
    for layer in layers:
        module = modules.get(layer) if isinstance(layer, str) else layer
        if module is None or id(module) not in known:
            raise ValueError(f"`layers` must be of the model, got {layer!r}")
        chosen.append(module)
    return chosen


def layer_names(model: nn.Module, layers: Layers) -> list[str] | None:
    """What `layers` are called in the model: two of one kind and size are printed alike."""
    if layers is None:
        return None
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(layer)] for layer in chosen_layers(model, layers)]


@contextmanager
def watched(layers: list[nn.Module], term: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """The terms of the layers, as a forward adds them; the hooks are gone afterwards."""
    terms: list[Tensor] = []

    def hook(module: nn.Module, args: object, features: object) -> None:
        if not isinstance(features, Tensor):
            raise TypeError(f"`layers` must give tensors, got a {type(features).__name__}")
        # A copy: what comes next may work in place.
        terms.append(term(features.clone().to(compute_dtype(features.dtype))))

    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield terms
    finally:
        for handle in handles:
            handle.remove()


def layer_gradient(
    model: Model, layers: list[nn.Module], x: Tensor, x_adv: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss (N,), its gradient by x_adv (N, *shape), changed (N,)): the sum over the layers of
    log mean |layer(x_adv) - layer(x)|, and whether the prediction is another than x's.

    Two forwards, one backward. A layer that did not change adds the log of the least number.
    """
    with watched(layers, lambda features: features) as seen:
        before = output(model, x.clone()).detach()
        clean = [features.detach() for features in seen]
        seen.clear()
        with torch.enable_grad():
            leaf = x_adv.detach().requires_grad_()
            after = output(model, leaf.clone())
            if not seen:
                raise ValueError(NONE_RAN)
            loss = torch.stack([_change(a, b) for a, b in zip(seen, clean, strict=True)]).sum(0)
            if not loss.requires_grad:
                raise ValueError(NO_GRADIENT)
            (grad,) = torch.autograd.grad(loss.sum(), leaf, allow_unused=True)
    if grad is None:
        raise ValueError(NO_GRADIENT)
    if bool(loss.isnan().any() | grad.isnan().any()):
        raise ValueError("`model` gave NaN: its layers' outputs are no numbers")
    return loss.detach(), grad, before.argmax(1) != after.argmax(1)


def _change(after: Tensor, before: Tensor) -> Tensor:  # (N,)
    if after.dim() < 1 or after.shape != before.shape:
        raise ValueError(f"`layers` must give (N, ...), got {tuple(after.shape)}")
    change = flat((after - before).abs()).mean(1)
    return (change + torch.finfo(change.dtype).tiny).log()
