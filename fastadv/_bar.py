"""A progress bar along a loader."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def along(loader: Iterable[T], **how: Any) -> tqdm[T]:
    """tqdm(iter(loader)): of a loader itself tqdm.auto keeps a second iterator open, which starts a
    DataLoader's workers, and draws their seed, twice."""
    bar: tqdm[T] = tqdm(iter(loader), total=operator.length_hint(loader) or None, **how)
    return bar
