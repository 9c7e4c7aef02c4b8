"""Numbers of paired runs: medians, their spread, and ratios within each pair."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import median
from typing import Any

import msgspec


class Spread(msgspec.Struct):
    """What repeated runs of one thing gave.

    Attributes:
        median: of all runs.
        low: the least.
        high: the greatest.
        runs: all of them, in the order in which they were made.
    """

    median: float
    low: float
    high: float
    runs: list[float]

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)} .. {number(self.high)})"


def number(value: float) -> str:
    """Return a number as people read it."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(runs: Sequence[float]) -> Spread:
    """Sum up the runs of one thing."""
    rounded = [round(value, 6) for value in runs]
    return Spread(median(rounded), min(rounded), max(rounded), rounded)


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Return the ratio within each pair of runs, summed up."""
    return spread([first / second for first, second in zip(above, below, strict=True)])


Measure = Callable[[], Awaitable[dict[str, float]]]


async def alternate(
    measures: Mapping[str, Measure], pairs: int, *, warm: bool = True
) -> dict[str, dict[str, Any]]:
    """Measure things in turn, A B, B A, A B ..., if ``warm`` after one round that does not count.

    Returns:
        By thing and by quantity, the values of all runs in the order of the pairs.
    """
    names = list(measures)
    for name in names if warm else ():
        await measures[name]()
    values: dict[str, dict[str, Any]] = {name: {} for name in names}
    for pair in range(pairs):
        for name in names if pair % 2 == 0 else reversed(names):
            for quantity, value in (await measures[name]()).items():
                values[name].setdefault(quantity, []).append(value)
    return values
