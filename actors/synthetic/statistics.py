"""How scores are distributed."""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Sequence

from ...schemas import ScoreDistribution

BINS = 20


def distribution(scores: Sequence[float]) -> ScoreDistribution:
    """Return the distribution of finite scores: its histogram has 20 bins of equal width, or one if all are equal.

    A bin has its lower bound, and the last one its upper bound too.
    """
    if not scores:
        return ScoreDistribution(0)
    ranked = sorted(scores)
    low, high = ranked[0], ranked[-1]
    bins = BINS if low < high else 1
    edges = [_between(low, high, number / bins) for number in range(bins + 1)]
    counts = [0] * bins
    for score in ranked:
        counts[min(bisect_right(edges, score), bins) - 1] += 1
    return ScoreDistribution(
        count=len(ranked),
        # Exact at any size of the scores: floats would overflow, or depend on the order.
        mean=statistics.mean(ranked),
        deviation=statistics.pstdev(ranked),
        quantiles=[_quantile(ranked, number / 4) for number in range(5)],
        edges=edges,
        counts=counts,
    )


def _quantile(ranked: Sequence[float], share: float) -> float:
    """Return the quantile at a share of the way, between the two scores that are next to it."""
    place = (len(ranked) - 1) * share
    lower = int(place)
    upper = min(lower + 1, len(ranked) - 1)
    return _between(ranked[lower], ranked[upper], place - lower)


def _between(low: float, high: float, share: float) -> float:
    # Their difference may be more than a float can be, and what is rounded may lie outside.
    return min(max(low * (1 - share) + high * share, low), high)
