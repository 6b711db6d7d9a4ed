"""What an attack may do to a model, and leaves as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

Model = Callable[[Tensor], Tensor]

Pull = Callable[[Tensor], Tensor]  # from a gradient by logits to that by x

MODES = ("eval", "train", "keep")


class Steady(nn.Module):
    """A module that can be held as it is, and then has its gradient as two functions."""

    def held(self) -> AbstractContextManager[None]:
        """While it is entered, the module does not change."""
        raise NotImplementedError

    def vjp(self, x: Tensor, rows: int = 1, probe: bool = False) -> tuple[Tensor, Pull] | None:
        """(logits at x (N, *shape), their pullback), of `rows` tangents a sample; None: there is
        none, but maybe after a forward, which `probe` makes."""
        raise NotImplementedError


def held(model: Model) -> AbstractContextManager[None]:
    """While it is entered the model stays as it is."""
    return model.held() if isinstance(model, Steady) else nullcontext()


def vjp(model: Model, x: Tensor, rows: int = 1, probe: bool = False) -> tuple[Tensor, Pull] | None:
    """As Steady.vjp, inside `held`; None: by autograd."""
    return model.vjp(x, rows, probe) if isinstance(model, Steady) else None


class Normalized(nn.Module):
    """model((x - mean) / std): attacks and radii then live in the space of x, pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor):
        super().__init__()
        self.model = model
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float32).reshape(-1))
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"`std` must have {len(self.mean)} values like `mean`, got {len(self.std)}"
            )
        if not bool((self.std > 0).all()):
            raise ValueError(f"`std` must be positive, got {self.std.tolist()}")

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or len(self.mean) not in (1, x.shape[1]):
            raise ValueError(
                f"`mean` and `std` have {len(self.mean)} channels, got x of shape {tuple(x.shape)}"
            )
        shape = (-1, *[1] * (x.dim() - 2))
        mean, std = (t.to(x.device, x.dtype).reshape(shape) for t in (self.mean, self.std))
        return self.model((x - mean) / std)


def normalized(
    model: Model, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor
) -> Normalized:
    """`model` behind (x - mean) / std, with one value a channel (dimension 1) or one for all."""
    return Normalized(model, mean, std)


@contextmanager
def crafting(model: Model, mode: str) -> Iterator[None]:
    """The model as an attack runs it; flags and buffers are restored, whatever happens.

    eval: as for inference. train: every module in train mode (Rice et al. craft so). keep: as it
    is. Batch norm's statistics, updated by a forward in train mode, are put back.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    flags = [(module, module.training) for module in model.modules()]
    saved: list[tuple[nn.Module, str, Tensor, Tensor]] = []
    try:
        if mode != "keep":
            model.train(mode == "train")
        saved += [
            (module, name, buffer, buffer.detach().clone())
            for module in model.modules()
            if module.training
            for name, buffer in module.named_buffers(recurse=False)
        ]
        yield
    finally:
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, value in saved:
                buffer.copy_(value)
                module._buffers[name] = buffer  # a forward may have put another in its place
