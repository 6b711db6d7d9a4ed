"""What a universal delta is beside its sample: smaller, under a mask, one a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from fastadv.placement import Place, require_fit, require_mask, small_shape


@dataclass(frozen=True)
class Form:
    """What delta is: smaller than a sample (`shape`: tiles, or placed at `offset`), free under
    `mask` alone, one a class."""

    shape: tuple[int, ...] | None = None
    offset: tuple[int, ...] | None = None
    classes: int | None = None
    mask: Tensor | None = None  # bool, broadcasts to a sample

    @classmethod
    def of(
        cls,
        shape: Sequence[int] | None,
        offset: Sequence[int] | None,
        classes: int | None,
        mask: Tensor | None,
    ) -> Form:
        """Raises ValueError for an offset without a shape, a mask with one, an empty mask, and for
        less than one class; TypeError for a mask that is not of bool."""
        if mask is not None and shape is not None:
            raise ValueError("`mask` says where a delta of its own is: give no `delta_shape`")
        if offset is not None and shape is None:
            raise ValueError("`offset` places a smaller delta: give its `delta_shape`")
        if classes is not None and classes < 1:
            raise ValueError(f"`per_class` must be at least 1, got {classes}")
        return cls(
            None if shape is None else tuple(shape),
            None if offset is None else tuple(offset),
            classes,
            None if mask is None else require_mask(mask).detach().clone(),
        )

    @property
    def place(self) -> Place:
        if self.mask is not None:
            return self.mask
        return self.offset if self.shape is None or self.offset is not None else "tiles"

    def fitted(self, shape: torch.Size) -> tuple[int, ...]:
        """delta's shape for samples of `shape`. Raises ValueError where it does not fit."""
        small = small_shape(shape, self.mask) if self.shape is None else self.shape
        require_fit(small, shape, self.place, "delta_shape")
        return small

    def facts(self, x: Tensor) -> tuple[object, ...]:
        """What ranks compare before the first step."""
        shape = tuple(x.shape[1:]) if self.shape is None else self.shape
        if self.mask is None:
            return (*shape, str(x.dtype))
        digest = crc32(bytes(self.mask.flatten().tolist()))
        return (*shape, str(x.dtype), f"mask {digest:08x}")
