"""What segmentation models are to see under a perturbation, and how much of it they do.

The targets of Hendrik Metzen et al. 1704.05712, section 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastadv.confusion import Confusion
from fastadv.labels import ClassLabels
from fastadv.model import Model, crafting
from fastadv.objectives import pixels
from fastadv.perturbation import Perturbation
from fastadv.problem import output
from fastadv.universal.batches import Batch, require_loader, require_some, samples
from fastadv.universal.ranks import Ranks

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

VOID = -1  # a label without a loss and a gradient: see ops.head
_CELLS = 1 << 22  # distances at a time


@dataclass(frozen=True)
class Remove:
    """The dynamic target: the clean prediction without class `label`, whose pixels, the object,
    take the nearest other label. weight: of the object's loss; the background's is 1 - weight."""

    label: int
    weight: float = 0.9999

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"`weight` must be in [0, 1], got {self.weight}")


Target = Tensor | Remove | None


@dataclass(frozen=True)
class Goal:
    """What a batch is to be seen as: labels (N, H, W), or VOID; `seek` them, or else miss them.

    weights: of the pixels, broadcastable to them. objects: (N, H, W) bool, what Remove removes.
    """

    labels: Tensor
    seek: bool
    weights: Tensor
    objects: Tensor | None = None

    def hits(self, prediction: Tensor) -> Tensor:  # (N, H, W) -> (N, H, W) bool
        """The pixels that are as they are to be."""
        same = prediction == self.labels
        return (same if self.seek else ~same) & (self.labels != VOID)


def goal_of(
    target: Target, logits: Tensor, y: Tensor | None, ignore_index: int
) -> Goal:  # logits: of the clean inputs
    """The goal of a batch. Raises TypeError or ValueError where these do not go together."""
    objective = pixels(ignore_index=ignore_index)
    if logits.dim() != 4:
        hint = ": (N, classes) go with gradient, moosavi and measure" * (logits.dim() == 2)
        raise ValueError(f"`model(x)` must be (N, classes, H, W), got {tuple(logits.shape)}{hint}")
    prediction = objective.prediction(logits)
    one = logits.new_ones((), dtype=torch.promote_types(logits.dtype, torch.float32))
    if isinstance(target, Remove):
        objective.check(logits, prediction)
        if not 0 <= target.label < logits.shape[1]:
            raise ValueError(f"`label` must be in [0, {logits.shape[1]}), got {target.label}")
        objects = prediction == target.label
        weights = torch.where(objects, target.weight * one, (1 - target.weight) * one)
        return Goal(fill(prediction, objects), True, weights, objects)
    if target is not None:
        labels = target.to(logits.device).expand(len(logits), *target.shape)
        objective.check(logits, None, labels)
    else:
        objective.check(logits, prediction if y is None else y)
        if y is None:
            return Goal(prediction, False, one)
        labels = y
    counted = ClassLabels(ignore_index).counted(labels)
    return Goal(torch.where(counted, labels.long(), VOID), target is not None, one)


def fill(labels: Tensor, holes: Tensor) -> Tensor:  # (N, H, W), (N, H, W) bool -> (N, H, W)
    """Each hole takes the label nearest to it, in Euclidean distance, that is no hole.

    Of labels equally near: by the leftmost column, there the upper. VOID where all are holes.
    The nearest of each column first, then of each row: O(H W) and O(holes * W).
    """
    _, height, width = labels.shape
    far = height + width  # beyond every distance in the image
    row = torch.arange(height, device=labels.device)[:, None]
    above = torch.where(holes, -far, row).cummax(1).values
    below = torch.where(holes, height + far, row).flip(1).cummin(1).values.flip(1)
    nearest = torch.where(row - above <= below - row, above, below)  # in the column
    away = (row - nearest).square()
    result, column = labels.clone(), torch.arange(width, device=labels.device)
    for part in torch.split(holes.nonzero(), max(1, _CELLS // width)):
        n, i, j = part.unbind(1)
        distance, best = (away[n, i] + (column - j[:, None]).square()).min(1)
        found = labels[n, nearest[n, i, best].clamp(0, height - 1), best]
        result[n, i, j] = torch.where(distance < far**2, found, VOID)
    return result


@dataclass(frozen=True)
class PixelRates:
    """Shares of pixels, under the perturbation and `clean`, without it.

    success: as they are to be: of the target's label, or without a target other than y.
    hidden: of the object's pixels, those of another class than the removed one; preserved: of the
    background's, those that keep their prediction; None without a Remove, or such pixels.
    samples: of so many. accuracy, miou: of the pixels' labels y, the share that is predicted, and
    the mean over the classes of intersection over union; None without labels.
    """

    success: float
    clean: float
    hidden: float | None
    preserved: float | None
    samples: int
    accuracy: float | None = None
    miou: float | None = None
    clean_accuracy: float | None = None
    clean_miou: float | None = None

    def __str__(self) -> str:
        more = [("hidden", self.hidden), ("preserved", self.preserved)]
        more += [("accuracy", self.accuracy), ("mIoU", self.miou)]
        shares = [("success", self.success), ("clean", self.clean), *more]
        known = [f"{name} {share:.3f}" for name, share in shares if share is not None]
        return f"{', '.join(known)}, of {self.samples}"


@torch.inference_mode(False)
def measure_pixels(
    uap: Perturbation,
    model: Model,
    loader: Iterable[Batch],
    *,
    target: Target = None,
    ignore_index: int = 255,
    group: ProcessGroup | None = None,
) -> PixelRates:
    """How far `uap` makes `model`, in eval mode, see the target over the batches of `loader`.

    Arguments and errors are `segmentation`'s; y is checked even where there is a target. Of no
    pixels that count a success is 0. Under torch.distributed the rates are those of all shards.
    """
    require_loader(loader)
    require_target(target)
    ranks, count = Ranks(group), _Count(target, ignore_index)
    with torch.no_grad(), crafting(model, "eval"):
        for x, y in samples(loader, uap.ball, some=False):
            logits = output(model, x.clone())  # a model may write on its input
            after = output(model, uap.apply(x).clone())
            if bool((after.isnan() | after.isposinf()).any()):
                raise ValueError("`model(x)` must be numbers, got NaN or +inf")
            count.add(logits, after, y)
    return count.rates(ranks)


class _Count:
    """Pixels, batch after batch; of each label predicted as each, before and after."""

    def __init__(self, target: Target, ignore_index: int) -> None:
        self.target, self.kind = target, ClassLabels(ignore_index)
        self.sums = torch.zeros(9, dtype=torch.int64)
        self.confusions: Tensor | None = None  # (2, C, C)

    def add(self, before: Tensor, after: Tensor, y: Tensor | None) -> None:  # (N, C, H, W)
        goal = goal_of(self.target, before, y, self.kind.ignore_index)
        said = [z.argmax(1) for z in (before, after)]
        labelled = 0 if y is None else len(y)
        self.sums[:7] += _counts(goal, said[0], said[1], self.target).cpu()
        self.sums[7:] += torch.tensor([len(before), labelled])
        if y is not None:
            pixels(ignore_index=self.kind.ignore_index).check(before, y)
            counted = self.kind.counted(y)
            both = [Confusion.of(p, y, counted, before.shape[1]).counts for p in said]
            more = torch.stack(both)
            self.confusions = more if self.confusions is None else self.confusions + more

    def rates(self, ranks: Ranks) -> PixelRates:
        """Of all ranks' pixels."""
        parts = ranks.gathered((self.sums, self.confusions))
        *sums, seen, labelled = torch.stack([part[0] for part in parts]).sum(0).tolist()
        require_some(seen, again=False)
        count, hits, clean, objects, hidden, rest, kept = sums
        there = [part[1] for part in parts if part[1] is not None]
        by: list[float | None] = [None] * 4
        if labelled == seen:
            before, after = (Confusion(counts) for counts in torch.stack(there).sum(0))
            by = [after.pixel_accuracy, after.miou, before.pixel_accuracy, before.miou]
        some = max(count, 1)
        return PixelRates(
            hits / some, clean / some, hidden / objects if objects else None,
            kept / rest if rest else None, seen, *by,
        )  # fmt: skip


def _counts(goal: Goal, before: Tensor, after: Tensor, target: Target) -> Tensor:  # (7,)
    parts = [goal.labels != VOID, goal.hits(after), goal.hits(before)]
    if goal.objects is not None and isinstance(target, Remove):
        rest = ~goal.objects
        parts += [goal.objects, goal.objects & (after != target.label), rest]
        parts += [rest & (after == before)]
    counts = torch.stack([part.sum() for part in parts])
    return torch.nn.functional.pad(counts, (0, 7 - len(counts)))


def require_target(target: object) -> None:
    """Raises TypeError for what is no target, ValueError for labels that are no map."""
    if target is None or isinstance(target, Remove):
        return
    if not isinstance(target, Tensor):
        raise TypeError(
            "`target` must be a tensor (H, W) of labels, a Remove or None, "
            f"got {type(target).__name__}"
        )
    if target.dim() != 2:
        raise ValueError(f"`target` must be (H, W), one map for all, got {tuple(target.shape)}")
