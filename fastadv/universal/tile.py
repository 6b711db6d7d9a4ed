"""segmentation's v: of the sample's size, or a tile repeated over it; one on all ranks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fastadv import _checks, ops
from fastadv.balls import Ball
from fastadv.perturbation import Perturbation
from fastadv.placement import gather, require_fit
from fastadv.universal.batches import require_some
from fastadv.universal.ranks import Ranks


class Tile:
    """It takes its channels, its dtype, and without a `size` its own, from the first batch."""

    def __init__(
        self, ball: Ball, size: tuple[int, int] | None, init: Perturbation | None, ranks: Ranks
    ) -> None:
        self.ball, self.ranks = ball, ranks
        self.free = replace(ball, bounds=None)  # the box is x + v's
        self.place = None if size is None else "tiles"
        self._size, self._init = size, init
        self._kept: Tensor | None = None
        self._value: Tensor | None = None

    @property
    def value(self) -> Tensor:  # (C, h, w)
        assert self._value is not None
        return self._value

    @property
    def perturbation(self) -> Perturbation:
        """v as it is now, a copy."""
        return Perturbation(self.value.clone(), self.ball, self.place)

    def go_on(self, value: Tensor) -> None:
        """From a value that a run has kept."""
        self._kept = value

    def at(self, x: Tensor) -> Tensor:  # (N, C, H, W)
        """clamp(x + v) to the bounds."""
        self.begin(x)
        return Perturbation(self.value, self.ball, self.place).apply(x)

    def begin(self, x: Tensor) -> None:
        """v for samples like x, where it is not there yet."""
        if self._value is not None:
            return
        if x.dim() != 4:
            raise ValueError(f"`x` must be (N, C, H, W), got {tuple(x.shape)}")
        small = tuple(x.shape[1:]) if self._size is None else (x.shape[1], *self._size)
        self.ranks.require_alike((*small, str(x.dtype)))
        require_fit(small, x.shape[1:], self.place, "tile")
        zeros = x.new_zeros(1, *small)
        if self._kept is not None:
            kept = self._kept.to(x.device)
            zeros = _checks.like(kept, "state[delta]", zeros[0], "the data")[None]
        elif self._init is not None:
            given = self._init.delta.detach().to(x.device, x.dtype)
            name = "x[0]" if self._size is None else "the tile"
            _checks.like(given, "init", zeros[0], name)
            if self._init.place != self.place:
                raise ValueError(f"`init` must be placed like {name}, got {self._init}")
            zeros = self.free.project(given[None], zeros)
        self._value = zeros[0].contiguous()
        self.ranks.share_(self._value)

    def gathered(self, grad: Tensor) -> Tensor:  # (C, H, W) -> (C, h, w)
        """v's gradient of an image's: the sum over the tiles."""
        return gather(grad[None], self.value.shape, self.place)[0]

    def together(self, grad: Tensor | None, tally: list[float]) -> tuple[Tensor, list[float]]:
        """(the sum of the ranks' gradients, of their tallies with how many had no sample)."""
        if grad is None and self._value is None:
            self.ranks.require_alike(None)  # raises, here and there
            require_some(0, again=False)
        idle = grad is None
        mine = torch.zeros_like(self.value, dtype=torch.float64) if grad is None else grad
        counts = mine.new_tensor([*tally, idle])
        every = self.ranks.sum_(torch.cat([mine.flatten(), counts]))
        return every[: -len(counts)].view_as(mine), every[-len(counts) :].tolist()

    def step_(self, grad: Tensor, size: float) -> None:  # (C, h, w)
        """v <- P(v + size * direction(grad)).

        Only the direction counts, and half precision has no 1e-9: grad is scaled to at most 1.
        """
        most = grad.abs().max()
        scaled = (grad / torch.where(most > 0, most, 1))[None].to(self.value.dtype)
        ops.universal_(self.value, scaled, ball=self.free, step_size=size)
