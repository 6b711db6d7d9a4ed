"""Interleaved timing: in each round every case runs once, so that what disturbs the machine
disturbs all of them, and cases are compared round by round.

The order is shuffled in every round: a case finds in the cache what the one before left there, and
in a fixed order the same case would always follow the one that leaves nothing.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Case = Callable[[], object]
Clock = Callable[[], float]  # seconds


@dataclass(frozen=True)
class Times:
    """Seconds a call, one a round."""

    rounds: tuple[float, ...]

    def quantile(self, share: float) -> float:
        """The quantile of the rounds, `share` in percent."""
        return _quantile(self.rounds, share)

    def over(self, other: Times) -> tuple[float, float, float]:
        """p20, p50 and p80 of this one's time over the other's, round by round."""
        ratios = [mine / yours for mine, yours in zip(self.rounds, other.rounds, strict=True)]
        return _quantile(ratios, 20), _quantile(ratios, 50), _quantile(ratios, 80)


def interleave(
    cases: Mapping[str, Case],
    seconds: float,
    least_rounds: int = 11,
    calls: int = 1,
    warm_up: int = 3,
    clock: Clock = time.perf_counter,
) -> dict[str, Times]:
    """Times every case for about `seconds` in all; `calls` of a case are one measurement."""
    for case in cases.values():
        for _ in range(warm_up):
            case()
    rounds: dict[str, list[float]] = {name: [] for name in cases}
    order, shuffle = list(cases.items()), random.Random(0).shuffle
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(rounds.values()))) < least_rounds:
        shuffle(order)
        for name, case in order:
            began = clock()
            for _ in range(calls):
                case()
            rounds[name].append((clock() - began) / calls)
    return {name: Times(tuple(times)) for name, times in rounds.items()}


def _quantile(values: tuple[float, ...] | list[float], share: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(share) - 1]
