"""The benchmarks: one file each, one name here."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from bench import (
    dense,
    gradients,
    head,
    layers,
    memory,
    moosavi,
    overhead,
    pgd,
    precision,
    step,
    step_scaling,
    stop,
    train,
    universal,
    universal_gradient,
    universal_step,
    warmup,
    zoo,
)
from bench.store import Measured

Tables = Iterable[Sequence[Measured]]


@dataclass(frozen=True)
class Benchmark:
    """arguments: adds a benchmark's own options. run: gates, then measures; one list a table. red:
    what of its tables is not as the project asks, a sentence each."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Tables]
    yardstick: str
    red: Callable[[Sequence[Any]], list[str]]


def _asks_nothing(tables: Sequence[Any]) -> list[str]:
    return []


def _described(module: ModuleType) -> Benchmark:
    red = getattr(module, "red", _asks_nothing)
    return Benchmark(module.__doc__ or "", module.arguments, module.run, module.YARDSTICK, red)


BENCHMARKS = {
    module.__name__.removeprefix("bench."): _described(module)
    for module in (
        step, universal, universal_gradient, universal_step, head, dense, pgd, layers, train,
        step_scaling, zoo, gradients, precision, memory, warmup, moosavi, stop, overhead,
    )
}  # fmt: skip
