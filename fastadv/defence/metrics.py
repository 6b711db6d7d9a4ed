"""How much a defence restores, how often it sees what it should, and how often it errs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadv._bar import along
from fastadv.defence.detector import Defended
from fastadv.defence.synthetic import require_perturbations
from fastadv.evaluation.accuracy import device_of
from fastadv.evaluation.report import share
from fastadv.model import crafting
from fastadv.perturbation import Perturbation
from fastadv.universal.batches import Batch, require_loader, samples
from fastadv.universal.rates import predictions


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What was predicted for N images, and for each of them under K perturbations.

    label (N,): the right classes, or the predictions on clean images where there are no labels.
    clean, clean_rectified (N,), perturbed, perturbed_rectified (K, N): the classifier's
    predictions, without and behind the rectifier. alarms (N,), detected (K, N): what the detector
    says of clean and of perturbed images.

    The metrics are those of Akhtar et al. 1711.05929, as shares, and each says what it counts: I_c
    are the clean images and I_p the perturbed ones, here K for each clean one; a star marks those
    that are classified correctly, a hat the rectified ones.
    """

    label: Tensor
    clean: Tensor
    clean_rectified: Tensor
    perturbed: Tensor
    perturbed_rectified: Tensor
    alarms: Tensor
    detected: Tensor

    def __post_init__(self) -> None:
        n = self.label.shape[:1]
        many = (*self.perturbed.shape[:1], *n)
        for name in ("label", "clean", "clean_rectified", "alarms"):
            self._require(name, tuple(n))
        for name in ("perturbed", "perturbed_rectified", "detected"):
            self._require(name, many)
        if not self.perturbed.numel():
            raise ValueError("`perturbed` must have an image and a perturbation, got none")

    def _require(self, name: str, shape: tuple[int, ...]) -> None:
        if tuple(getattr(self, name).shape) != shape:
            raise ValueError(f"`{name}` must be {shape}, got {tuple(getattr(self, name).shape)}")

    @property
    def agreement(self) -> tuple[float, float]:
        """The shares of perturbed images whose prediction is the clean image's: without the
        rectifier, and behind it, whatever the detector says."""
        return share(self.perturbed == self.clean), share(self.perturbed_rectified == self.clean)

    @property
    def gain(self) -> float:
        """PRN gain: (|hat I_p*| - |I_p*|) / |I_p|, the accuracy on perturbed images that the
        rectifier wins."""
        return share(self.perturbed_rectified == self.label) - share(self.perturbed == self.label)

    @property
    def restoration(self) -> float:
        """PRN restoration: |hat I_p*| / |I_c*| for one perturbation on average: the accuracy on
        rectified images over that on clean ones. NaN where the classifier is never right."""
        return _ratio(share(self.perturbed_rectified == self.label), share(self._right()))

    @property
    def detection(self) -> float:
        """Detection rate: the share of perturbed images that are found."""
        return share(self.detected)

    @property
    def false_alarms(self) -> float:
        """The share of clean images that the detector takes for perturbed."""
        return share(self.alarms)

    @property
    def defence(self) -> float:
        """Defence rate: the accuracy of the whole (what is detected is rectified, the rest is not)
        on clean and perturbed images, which count one half each, over the classifier's on clean
        ones. 1 is as if there were no attack; NaN where the classifier is never right."""
        clean = torch.where(self.alarms, self.clean_rectified, self.clean)
        attacked = torch.where(self.detected, self.perturbed_rectified, self.perturbed)
        both = (share(clean == self.label) + share(attacked == self.label)) / 2
        return _ratio(both, share(self._right()))

    def _right(self) -> Tensor:
        return self.clean == self.label

    def __str__(self) -> str:
        before, after = self.agreement
        return (
            f"agreement {before:.3f} -> {after:.3f}, gain {self.gain:.3f}, restoration "
            f"{self.restoration:.3f}, detection {self.detection:.3f}, false alarms "
            f"{self.false_alarms:.3f}, defence {self.defence:.3f}, of {len(self.label)} images "
            f"under {len(self.perturbed)} perturbations"
        )


@torch.inference_mode(False)
def measure(
    defended: Defended,
    perturbations: Sequence[Perturbation],
    loader: Iterable[Batch],
    progress: bool = False,
) -> Outcomes:
    """Outcomes over the batches (x, y), or x, of `loader`, under each of `perturbations`, in eval
    mode. Images and perturbations should be ones that the defence was not trained on.

    Without y the predictions on clean images are the labels. Raises ValueError for a loader
    without samples, one that has labels only now and then, and a model that gives NaN.
    """
    perturbations = require_perturbations(perturbations)
    require_loader(loader)
    parts: list[list[Tensor]] = []
    labelled = set()
    with torch.no_grad(), crafting(defended, "eval"):
        bar = along(loader, disable=not progress, desc="defence")
        for x, y in samples(bar, perturbations[0].ball):
            x = x.to(device_of(defended) or x.device)
            labelled.add(y is None)
            seen = [_see(defended, given) for given in (x, *(p.apply(x) for p in perturbations))]
            plain, rectified, found = (torch.stack(column) for column in zip(*seen, strict=True))
            label = plain[0] if y is None else y.long().cpu()
            parts.append(
                [label, plain[0], rectified[0], plain[1:], rectified[1:], found[0], found[1:]]
            )
    if len(labelled) > 1:
        raise ValueError("`loader` must give (x, y) in every batch or in none")
    return Outcomes(*(torch.cat(column, -1) for column in zip(*parts, strict=True)))


def _see(defended: Defended, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # each (N,)
    """(predictions, predictions behind the rectifier, found perturbed), on the CPU."""
    rectified, found = defended.rectify(x)
    plain, after = (predictions(defended.model, given) for given in (x, rectified))
    return plain.cpu(), after.cpu(), found.cpu()


def _ratio(value: float, whole: float) -> float:
    return value / whole if whole else float("nan")
