"""What `attack` attacks: checked before the first batch, then attacked and judged by the batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastadv import _checks
from fastadv.attack import Attack
from fastadv.cli.arguments import Mistake, naming
from fastadv.cli.data import Data
from fastadv.cli.results import Part
from fastadv.evaluation.scores import clean, craft, objective_of, score
from fastadv.model import crafting
from fastadv.objectives import Objective


@dataclass(frozen=True)
class Task:
    """What is attacked with what. `crafter` is `model`, or it in the precision of --dtype."""

    attack: Attack
    model: nn.Module
    crafter: nn.Module
    data: Data
    device: torch.device
    seed: int

    def batch(self, start: int, stop: int) -> Part:
        """Attacks and re-scores the samples from start to stop."""
        x, y, target = (
            None if values is None else values[start:stop].to(self.device)
            for values in (self.data.x, self.data.y, self.data.target)
        )
        assert x is not None
        before = clean(self.model, x, y, objective_of(self.attack))
        labels = before.prediction if y is None else y
        x_adv, forwards, seconds = craft(
            self.attack, self.crafter, x, labels, target=target, seed=self.seed, offset=start
        )
        scores = score(self.attack, self.model, x, x_adv, labels, before, target=target)
        scores = replace(scores, seconds=seconds, forwards=forwards)
        return Part(x_adv.cpu(), before.wrong, scores, before.confusion)


class Narrow(nn.Module):
    """The model computed in half precision; x and the logits stay as they are."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = copy.deepcopy(model).to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.to(self.dtype))
        return logits.to(x.dtype)


def check(task: Task, model: str, files: Sequence[str]) -> None:
    """Everything that can be known before the first batch: a mistake shows in seconds."""
    x, y, target = task.data.x, task.data.y, task.data.target
    ball, objective = task.attack.ball, objective_of(task.attack)
    with naming("--data"):
        _checks.inputs(x, ball)
    try:
        with torch.no_grad(), crafting(task.model, "eval"):
            logits = task.model(x[:1].to(task.device))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Mistake(
            f"--model {model} must take x of shape {tuple(x[:1].shape)}, "
            f"and fails: {reason}{_hint(task.data)}"
        ) from error
    if not isinstance(logits, Tensor) or logits.shape[:1] != (1,):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise Mistake(
            f"--model {model} must give one row of logits a sample, got {got} for one sample"
        )
    with naming(f"--data {' '.join(files)} with --model {model}"):
        logits = logits.cpu()
        said = objective.predict(logits)
        objective.check(logits, said, None if target is None else said)
        for name, labels in (("y", y), ("target", target)):
            require_labels(objective, logits, labels, name)


def require_labels(objective: Objective, logits: Tensor, labels: Tensor | None, name: str) -> None:
    """Raises for labels of all samples that do not go with one sample's logits (1, ...)."""
    if labels is None:
        return
    every = logits.expand(len(labels), *logits.shape[1:])  # of which they ask for the shape alone
    for fault, sentence in objective.labels.faults(every, labels, name):
        if bool(fault):
            raise ValueError(sentence())


def _hint(own: Data) -> str:
    if own.x.dim() == 4 and own.x.shape[-1] in (1, 3, 4) and not own.channels_last:
        return "; for images (N, H, W, C) give --channels-last-data"
    return ""
