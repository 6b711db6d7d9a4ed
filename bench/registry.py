"""The benchmarks: one file each, one line here."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from bench import (
    dense,
    head,
    layers,
    moosavi,
    overhead,
    pgd,
    scaling,
    step,
    stop,
    train,
    universal,
    universal_gradient,
    universal_step,
)
from bench.store import Row


@dataclass(frozen=True)
class Benchmark:
    """arguments: adds a benchmark's own options. run: gates, then measures; one list a table."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], list[list[Row]]]
    yardstick: str


BENCHMARKS = {
    "step": Benchmark(step.__doc__ or "", step.arguments, step.run, step.YARDSTICK),
    "universal": Benchmark(
        universal.__doc__ or "", universal.arguments, universal.run, universal.YARDSTICK
    ),
    "universal_gradient": Benchmark(
        universal_gradient.__doc__ or "",
        universal_gradient.arguments,
        universal_gradient.run,
        universal_gradient.YARDSTICK,
    ),
    "universal_step": Benchmark(
        universal_step.__doc__ or "",
        universal_step.arguments,
        universal_step.run,
        universal_step.YARDSTICK,
    ),
    "head": Benchmark(head.__doc__ or "", head.arguments, head.run, head.YARDSTICK),
    "dense": Benchmark(dense.__doc__ or "", dense.arguments, dense.run, dense.YARDSTICK),
    "pgd": Benchmark(pgd.__doc__ or "", pgd.arguments, pgd.run, pgd.YARDSTICK),
    "layers": Benchmark(layers.__doc__ or "", layers.arguments, layers.run, layers.YARDSTICK),
    "train": Benchmark(train.__doc__ or "", train.arguments, train.run, train.YARDSTICK),
    "scaling": Benchmark(scaling.__doc__ or "", scaling.arguments, scaling.run, scaling.YARDSTICK),
    "moosavi": Benchmark(moosavi.__doc__ or "", moosavi.arguments, moosavi.run, moosavi.YARDSTICK),
    "stop": Benchmark(stop.__doc__ or "", stop.arguments, stop.run, stop.YARDSTICK),
    "overhead": Benchmark(
        overhead.__doc__ or "", overhead.arguments, overhead.run, overhead.YARDSTICK
    ),
}
