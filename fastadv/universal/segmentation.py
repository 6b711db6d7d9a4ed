"""One perturbation that makes a segmentation model see what it is told to, or nothing right.

Hendrik Metzen et al. 1704.05712.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastadv import ops
from fastadv._pixels import maps, rows
from fastadv.balls import Ball, require_ball
from fastadv.model import Model, crafting
from fastadv.perturbation import Perturbation
from fastadv.problem import NO_GRADIENT, output
from fastadv.reference_head import CROSS_ENTROPY
from fastadv.universal.batches import Batch, require_loader, require_some, samples
from fastadv.universal.ranks import Ranks
from fastadv.universal.scenes import VOID, Goal, Remove, Target, goal_of, require_target
from fastadv.universal.state import State, digest, require_at_most
from fastadv.universal.tile import Tile

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@torch.inference_mode(False)  # where no gradient could be taken
def segmentation(
    ball: Ball,
    model: Model,
    loader: Iterable[Batch],
    *,
    target: Target = None,
    steps: int = 60,
    step_size: float | None = None,
    tile: tuple[int, int] | None = None,
    confidence: float | None = 0.75,
    ignore_index: int = 255,
    batches: int | None = None,
    init: Perturbation | None = None,
    state: str | os.PathLike[str] | None = None,
    progress: bool = False,
    group: ProcessGroup | None = None,
) -> Perturbation:
    """v <- P(v - step_size * direction(the mean over x of grad J(x + v))), `steps` times, from 0.

    model: gives logits (N, C, H, W); run in eval mode. loader: batches (x, y) or x.
    target: what every input is to be seen as. A scene (H, W) of labels: static. Remove(c): each
    input keeps its own clean prediction, but for class c, filled by the nearest other labels
    (dynamic). None: anything but y, or without y than the clean prediction. J is the cross-entropy
    to the target, summed over the pixels (Remove weighs them), without one its negative to y.
    Pixels labelled `ignore_index` count for nothing.
    confidence: pixels that predict their target with more than that have no gradient, or without a
    target those wrong that give y less than 1 - that; None: all have one.
    step_size: None is a tenth of the radius, as published: 1/255 of 10/255.
    tile: (h, w); v is a tile of that size, repeated over the image and cut off at its ends, and its
    gradient the sum over the tiles; linf alone.
    batches: so many of the loader to a step, which goes on where the last one ended; None: all, as
    published. init: goes on from there. state: a file, written after each step; a run that finds
    it goes on from it, to the same result if the loader is made and seeded as it was. progress: a
    bar with the share of pixels that are as they are to be.

    Under torch.distributed the ranks of `group` (None: the default one) each give their shard, in
    batches of any size and number, and all hold the same v: a step sums the ranks' gradients, one
    tensor of v's size and a few counts, in float64. `batches` are then each rank's, and `state` is
    the first rank's file.

    The gradient is taken at clamp(x + v) and passes the clamp unchanged. Nothing is random.
    Raises TypeError or ValueError for a target that does not go with the logits, a tile in another
    norm, numbers that are none, a `state` of another run, and where an attack would on a batch.
    """
    _require(require_ball(ball), steps, tile, confidence, batches)
    require_loader(loader)
    require_target(target)
    ranks = Ranks(group)
    size = ball.radius / 10 if step_size is None else step_size
    settings = {
        "algorithm": "segmentation", "ball": ball, "step_size": size, "tile": tile and tuple(tile),
        "target": digest(target) if isinstance(target, Tensor) else target,
        "confidence": confidence, "ignore_index": ignore_index, "batches": batches,
        "init": digest(None if init is None else init.delta),
    }  # fmt: skip
    kept = State(state, {name: str(value) for name, value in settings.items()}, ranks)
    v = Tile(ball, tile, init, ranks)
    feed, search = _Feed(loader, ball, batches), _Search(model, target, confidence, ignore_index)
    done = _resume(kept, v, feed, steps)
    hidden = not progress or ranks.rank > 0
    bar = tqdm(range(done, steps), "segmentation", steps, initial=done, unit="step", disable=hidden)
    for k in bar:
        with torch.no_grad(), crafting(model, "eval"):
            success = _step(v, search, feed, size, again=k > 0)
        kept.keep({"delta": v.value}, {"done": k + 1})
        bar.set_postfix(success=f"{success:.3f}", refresh=False)
    return v.perturbation


def _step(v: Tile, search: _Search, feed: _Feed, size: float, again: bool) -> float:
    """v's step along the gradient of all ranks; the share of pixels that were as they are to be."""
    total: Tensor | None = None
    for x, y in feed.step():
        grad = v.gathered(search.gradient(x, y, v.at(x)))
        total = grad if total is None else total + grad
    grad, (hits, counted, idle) = v.together(total, search.tally())
    require_some(not idle, again)
    if not bool(grad.isfinite().all()):
        raise ValueError("`model` gave NaN or an infinite gradient at a point of the ball")
    v.step_(grad, size)
    return hits / max(counted, 1)


def _resume(kept: State, v: Tile, feed: _Feed, steps: int) -> int:
    """How many steps are done; their batches are read again, so that the next are as they were."""
    found = kept.kept()
    if found is None:
        return 0
    v.go_on(found[0]["delta"])
    done = int(found[1]["done"])
    require_at_most(done, steps, "steps")
    for _ in range(done):
        for x, _ in feed.step():
            v.begin(x)
    return done


class _Feed:
    """A step's batches: all of the loader, or so many of it, going on where the last ones ended."""

    def __init__(self, loader: Iterable[Batch], ball: Ball, batches: int | None) -> None:
        self.loader, self.ball, self.batches = loader, ball, batches
        self._endless = self._again()

    def step(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        if self.batches is None:
            return samples(self.loader, self.ball, some=False)
        return islice(self._endless, self.batches)

    def _again(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        seen = 1
        while seen:
            seen = 0
            for x, y in samples(self.loader, self.ball, some=False):
                seen += len(x)
                yield x, y


def _require(
    ball: Ball,
    steps: int,
    tile: tuple[int, int] | None,
    confidence: float | None,
    batches: int | None,
) -> None:
    for name, count in (("steps", steps), ("batches", batches)):
        if count is not None and count < 1:
            raise ValueError(f"`{name}` must be at least 1, got {count}")
    if confidence is not None and not 0 < confidence <= 1:
        raise ValueError(f"`confidence` must be in (0, 1], got {confidence}")
    if tile is None:
        return
    if len(tile) != 2 or min(tile) < 1:
        raise ValueError(f"`tile` must be (height, width), at least 1, got {tile}")
    if ball.order != "linf":
        raise ValueError(f"`tile` goes with Linf: repeated, it has another norm, got {ball}")


class _Search:
    """-J's gradient over batches, and how many of the pixels are as they are to be."""

    def __init__(
        self, model: Model, target: Target, confidence: float | None, ignore_index: int
    ) -> None:
        self.model, self.target = model, target
        self.confidence, self.ignore_index = confidence, ignore_index
        self._seen = torch.zeros(2, dtype=torch.int64)  # (hits, counted)

    def gradient(self, x: Tensor, y: Tensor | None, x_adv: Tensor) -> Tensor:  # (C, H, W)
        """Summed over the batch, in float64: how it was cut into batches hardly matters."""
        target = self.target
        unlike = isinstance(target, Remove) or (target is None and y is None)
        clean = output(self.model, x.clone()) if unlike else None  # a model may write on its input
        with torch.enable_grad():
            leaf = x_adv.requires_grad_()
            logits = output(self.model, leaf.clone())
            if not logits.requires_grad:
                raise ValueError(NO_GRADIENT)
            z = logits.detach()
            goal = goal_of(target, z if clean is None else clean, y, self.ignore_index)
            (grad,) = torch.autograd.grad(logits, leaf, self._head(z, goal), allow_unused=True)
        if grad is None:
            raise ValueError(NO_GRADIENT)
        return grad.sum(0, dtype=torch.float64)

    def _head(self, z: Tensor, goal: Goal) -> Tensor:  # (N, C, H, W)
        """-J's gradient by the logits: every pixel's, weighted, 0 where it is sure of its goal."""
        label = goal.labels.reshape(-1)
        loss, grad, said = ops.head(rows(z), label, None, CROSS_ENTROPY, goal.seek)
        hits = goal.hits(said.view(goal.labels.shape))
        weights = goal.weights.expand(goal.labels.shape)
        if self.confidence is not None:
            p = torch.exp(-loss.abs()).view(hits.shape)
            sure = p > self.confidence if goal.seek else p < 1 - self.confidence
            weights = weights.masked_fill(hits & sure, 0)
        self._seen = self._seen.to(z.device)
        self._seen += torch.stack([hits.sum(), (goal.labels != VOID).sum()])
        return maps((grad * weights.reshape(-1, 1)).to(z.dtype), z)

    def tally(self) -> list[float]:
        """How many pixels are as they are to be, and of how many, since the last call."""
        counts: list[float] = self._seen.tolist()
        self._seen.zero_()
        return counts
