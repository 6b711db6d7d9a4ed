"""One perturbation that makes a segmentation model see what it is told to, or nothing right.

Hendrik Metzen et al. 1704.05712.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from fastadv import _checks, ops
from fastadv._pixels import maps, rows
from fastadv.balls import Ball, require_ball
from fastadv.model import Model, crafting
from fastadv.perturbation import Perturbation
from fastadv.problem import NO_GRADIENT, output
from fastadv.reference_head import CROSS_ENTROPY
from fastadv.universal.batches import Batch, require_loader, samples
from fastadv.universal.scenes import VOID, Goal, Remove, Target, goal_of, require_target


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
    progress: bool = False,
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
    published. init: goes on from there (of tiles, from the first). progress: a bar with the share
    of pixels that are as they are to be.

    The gradient is taken at clamp(x + v) and passes the clamp unchanged. Nothing is random.
    Raises TypeError or ValueError for a target that does not go with the logits, a tile in another
    norm, numbers that are none, and where an attack would on a batch.
    """
    _require(require_ball(ball), steps, tile, confidence, batches)
    require_loader(loader)
    require_target(target)
    v = _Delta(ball, tile, init)
    search = _Search(model, target, confidence, ignore_index)
    size = ball.radius / 10 if step_size is None else step_size
    feed = _endless(loader, ball)
    bar = tqdm(range(steps), disable=not progress, desc="segmentation", unit="step")
    for k in bar:
        part = islice(feed, batches) if batches else samples(loader, ball, again=k > 0)
        with torch.no_grad(), crafting(model, "eval"):
            total = sum(search.gradient(x, y, v.at(x)) for x, y in part)
        assert isinstance(total, Tensor)
        if not bool(total.isfinite().all()):
            raise ValueError("`model` gave NaN or an infinite gradient at a point of the ball")
        v.step_(total, size)
        bar.set_postfix(success=f"{search.success() if progress else 0:.3f}", refresh=False)
    return v.perturbation


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


def _endless(loader: Iterable[Batch], ball: Ball) -> Iterator[tuple[Tensor, Tensor | None]]:
    again = False
    while True:
        yield from samples(loader, ball, again=again)
        again = True


class _Delta:
    """v, which takes its shape and dtype from the first batch, and the tile (C, h, w) of it."""

    def __init__(self, ball: Ball, tile: tuple[int, int] | None, init: Perturbation | None) -> None:
        self.ball, self._size, self._init = ball, tile, init
        self.free = replace(ball, bounds=None)  # the box is x + v's
        self._tile: Tensor | None = None
        self._shape = torch.Size()

    @property
    def perturbation(self) -> Perturbation:
        """v as it is now, a copy."""
        assert self._tile is not None
        _, height, width = self._shape
        times = [
            -(-n // size) for n, size in zip((height, width), self._tile.shape[1:], strict=True)
        ]
        return Perturbation(self._tile.repeat(1, *times)[:, :height, :width].clone(), self.ball)

    def at(self, x: Tensor) -> Tensor:  # (N, C, H, W)
        """clamp(x + v) to the bounds."""
        if self._tile is None:
            self._begin(x)
        return self.perturbation.apply(x)

    def _begin(self, x: Tensor) -> None:
        if x.dim() != 4:
            raise ValueError(f"`x` must be (N, C, H, W), got {tuple(x.shape)}")
        self._shape = x.shape[1:]
        zeros = torch.zeros_like(x[:1], memory_format=torch.contiguous_format)
        if self._init is not None:
            given = self._init.delta.detach().to(x.device, x.dtype)[None]
            _checks.like(given[0], "init", zeros[0], "x[0]")
            zeros = self.free.project(given, zeros)
        height, width = self._size or x.shape[2:]
        self._tile = zeros[0, :, :height, :width].contiguous()

    def step_(self, grad: Tensor, size: float) -> None:  # (C, H, W)
        """v <- P(v + size * direction(grad)), the direction of what the tiles' gradients sum to."""
        assert self._tile is not None
        channels, height, width = self._tile.shape
        ends = [-grad.shape[2] % width, -grad.shape[1] % height]
        parts = functional.pad(grad, (0, ends[0], 0, ends[1]))
        parts = parts.view(channels, parts.shape[1] // height, height, -1, width).sum((1, 3))
        ops.universal_(self._tile, _scaled(parts, self._tile), ball=self.free, step_size=size)


def _scaled(grad: Tensor, like: Tensor) -> Tensor:
    """(1, C, h, w) in like's dtype: only its direction counts, and half precision has no 1e-9."""
    most = grad.abs().max()
    return (grad / torch.where(most > 0, most, 1))[None].to(like.dtype)


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

    def success(self) -> float:
        """The share since the last call."""
        hits, counted = self._seen.tolist()
        self._seen.zero_()
        return float(hits / max(counted, 1))
