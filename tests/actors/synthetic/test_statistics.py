"""How scores are distributed."""

from __future__ import annotations

import math
import statistics
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.actors.synthetic.statistics import BINS, distribution
from ayllu.schemas import ScoreDistribution

pytestmark = pytest.mark.requirement("synthetic-statistics")
FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(FINITE | st.sampled_from([0.0, 1.0]), min_size=1, max_size=60))
def test_every_score_is_in_one_bin_and_all_figures_are_between_the_extremes(
    scores: list[float],
) -> None:
    found = distribution(scores)
    assert found.count == len(scores) == sum(found.counts)
    assert len(found.edges) == len(found.counts) + 1 <= BINS + 1
    assert found.edges == sorted(found.edges)
    assert (found.edges[0], found.edges[-1]) == (min(scores), max(scores))
    assert found.quantiles == sorted(found.quantiles)
    assert (found.quantiles[0], found.quantiles[-1]) == (min(scores), max(scores))
    assert found.mean is not None
    assert min(scores) <= found.mean <= max(scores)
    assert found.deviation is not None
    assert found.deviation >= 0
    assert math.isfinite(found.deviation)


@given(st.lists(FINITE, max_size=20), st.randoms(use_true_random=False))
def test_the_order_of_scores_does_not_matter(scores: list[float], shuffler: Random) -> None:
    shuffled = shuffler.sample(scores, len(scores))
    assert distribution(shuffled) == distribution(scores)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_quartiles_are_those_of_the_standard_library(scores: list[float]) -> None:
    expected = statistics.quantiles(scores, n=4, method="inclusive")
    assert distribution(scores).quantiles[1:4] == pytest.approx(expected)


def test_a_distribution_by_hand() -> None:
    found = distribution([0.0, 1.0, 0.05, 0.5])
    assert found.mean == pytest.approx(0.3875)
    assert found.deviation == pytest.approx(statistics.pstdev([0.0, 1.0, 0.05, 0.5]))
    assert found.quantiles == pytest.approx([0.0, 0.0375, 0.275, 0.625, 1.0])
    assert [number for number, count in enumerate(found.counts) if count] == [0, 1, 10, 19]


def test_equal_scores_have_one_bin() -> None:
    assert distribution([0.1, 0.1, 0.1]) == ScoreDistribution(
        3, mean=0.1, deviation=0.0, quantiles=[0.1] * 5, edges=[0.1, 0.1], counts=[3]
    )


def test_without_scores_there_is_only_the_count() -> None:
    assert distribution([]) == ScoreDistribution(0)
