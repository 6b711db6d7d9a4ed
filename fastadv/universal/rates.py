"""How many inputs a perturbation fools, and how many the model then gets wrong: two numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastadv._checks import text
from fastadv.model import Model, crafting, vjp
from fastadv.perturbation import Perturbation
from fastadv.problem import output
from fastadv.universal.batches import Batch, require_some, samples
from fastadv.universal.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


_MAPS = (
    ": maps go with universal.segmentation, gradient, fast_feature_fool and gd_uap, and with "
    "measure_pixels"
)


@dataclass(frozen=True)
class Rates:
    """fooled: the share whose prediction changes. wrong: the share predicted other than y, None
    without labels. samples: of so many."""

    fooled: float
    wrong: float | None
    samples: int

    def __str__(self) -> str:
        wrong = "" if self.wrong is None else f", wrong {self.wrong:.3f}"
        return f"fooled {self.fooled:.3f}{wrong}, of {self.samples}"


@torch.inference_mode(False)
def measure(
    uap: Perturbation,
    model: Model,
    loader: Iterable[Batch],
    *,
    group: ProcessGroup | None = None,
) -> Rates:
    """The rates of `uap` over the batches (x, y), or x, of `loader`; the model in eval mode.

    Under torch.distributed every rank of `group` (None: the default one) calls it with its shard,
    and the rates are those of all shards; `drop_last` and the sampler's padding are the loader's.

    Raises ValueError for a loader without samples, x beyond the bounds, and a model that gives NaN.
    """
    return rates_of(uap, model, loader, "loader", again=False, ranks=Ranks(group))


def rates_of(
    uap: Perturbation,
    model: Model,
    loader: Iterable[Batch],
    name: str,
    again: bool,
    ranks: Ranks | None = None,
) -> Rates:
    """`measure`, of a loader that its errors call by `name`, read before or not; alone without
    `ranks`."""
    seen, fooled, wrong, labelled = 0, 0, 0, 0
    with torch.no_grad(), crafting(model, "eval"):
        for x, y in samples(loader, uap.ball, name, again, some=ranks is None):
            before, after = predictions(model, x), predictions(model, uap.apply(x, y))
            seen, fooled = seen + len(x), fooled + int((before != after).sum())
            if y is not None:
                require_labels(y, after)
                labelled, wrong = labelled + len(y), wrong + int((after != y).sum())
    if ranks is not None:
        seen, fooled, wrong, labelled = ranks.totals([seen, fooled, wrong, labelled])
        require_some(seen, again, name)
    return Rates(fooled / seen, wrong / seen if labelled == seen else None, seen)


def require_labels(y: Tensor, said: Tensor) -> None:
    """Raises ValueError unless y is one label a prediction (N,): others would be broadcast."""
    if y.shape != said.shape:
        raise ValueError(f"`y` must be class labels {text(said.shape)}, got {text(y.shape)}")


def predictions(model: Model, x: Tensor) -> Tensor:  # (N, *shape) -> (N,)
    """The classes that the model says. Raises ValueError for NaN and for other than (N, C)."""
    found = vjp(model, x)  # within an attack the gradient's own forward, where it was taken before
    logits = found[0] if found else output(model, x.clone()).detach()  # a model may write on it
    if logits.shape[:-1] != x.shape[:1]:
        raise ValueError(
            f"`model(x)` must be ({len(x)}, classes), got {text(logits.shape)}"
            + _MAPS * (logits.dim() == 4)
        )
    best, label = logits.max(1)  # NaN where any logit is
    if bool((best.isnan() | best.isposinf()).any()):
        raise ValueError("`model(x)` must be numbers, got NaN or +inf")
    return label
