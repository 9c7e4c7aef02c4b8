"""Means and intervals of scores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.actors.improvement.evaluation import Z, bootstrap, evaluate, paired_gain, wilson
from ayllu.schemas import KScoredPromptGenerations, Message, Role, ScoredMessage

QUESTION, ANSWER = Message(Role.user, "?"), Message(Role.assistant, "!")
scores = st.lists(st.floats(-5, 5), min_size=1, max_size=40)


def results_of(*prompts: list[float]) -> list[KScoredPromptGenerations]:
    return [
        KScoredPromptGenerations(QUESTION, [ScoredMessage(ANSWER, score) for score in found], index)
        for index, found in enumerate(prompts)
    ]


@pytest.mark.parametrize(("successes", "trials"), [(5, 10), (1, 10), (81, 263), (999, 1000)])
@pytest.mark.requirement("improvement-evaluation")
def test_the_bounds_are_the_shares_that_a_score_test_just_does_not_refuse(
    successes: int, trials: int
) -> None:
    share = successes / trials
    for bound in wilson(successes, trials):
        # What defines them: the share is Z standard errors away from the bound, with the error that the bound has.
        assert abs(share - bound) == pytest.approx(Z * (bound * (1 - bound) / trials) ** 0.5)


@pytest.mark.requirement("improvement-evaluation")
def test_the_interval_of_a_share_without_any_spread_is_not_a_point() -> None:
    # p = 0: the upper bound is Z^2 / (n + Z^2), solved by hand.
    assert wilson(0, 10) == pytest.approx((0.0, Z**2 / (10 + Z**2)))
    assert wilson(10, 10) == pytest.approx((10 / (10 + Z**2), 1.0))


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@pytest.mark.requirement("improvement-evaluation")
def test_wilson_has_the_share_within_0_and_1(counts: tuple[int, int]) -> None:
    successes, trials = counts
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert low < high


@given(scores)
@pytest.mark.requirement("improvement-evaluation")
def test_the_bootstrap_is_repeatable_and_within_the_scores(values: list[float]) -> None:
    low, high = bootstrap(values)
    assert (low, high) == bootstrap(values)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


@pytest.mark.requirement("improvement-evaluation")
def test_the_bootstrap_is_about_the_normal_interval_of_many_scores() -> None:
    values = [number / 999 for number in range(1000)]
    low, high = bootstrap(values)
    half = 1.96 * (1 / 12) ** 0.5 / 1000**0.5
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.003)


@pytest.mark.requirement("improvement-evaluation")
def test_single_trials_of_0_or_1_have_wilsons_interval_and_others_the_bootstrap() -> None:
    found = evaluate("m", "j", results_of([1.0], [0.0], [1.0]), prompts=3, answers=1)
    assert found is not None
    assert (found.interval, found.answers) == ("wilson", 3)
    assert found.mean == pytest.approx(2 / 3)
    partly = evaluate("m", "j", results_of([1.0], [0.5]), prompts=2, answers=1)
    several = evaluate("m", "j", results_of([1.0, 0.0], [1.0, 1.0]), prompts=2, answers=2)
    for other in (partly, several):
        assert other is not None
        assert (other.interval, other.mean) == ("bootstrap", 0.75)


@pytest.mark.requirement("improvement-evaluation")
def test_answers_without_a_score_count_as_the_worst() -> None:
    # A prompt that is not among the results, one without a score, one with half of its answers.
    results = [one for one in results_of([0.5, 0.5], [], [], [1.0]) if one.index != 2]
    found = evaluate("m", "j", results, prompts=4, answers=2)
    assert found is not None
    assert (found.mean, found.answers) == ((0.5 + 0 + 0 + 0.5) / 4, 3)
    below = evaluate("m", "j", results_of([-2.0], [1.0], []), prompts=3, answers=1)
    assert below is not None
    assert below.mean == pytest.approx((-2 + 1 - 2) / 3)
    known = evaluate("m", "j", results_of([0.5], []), prompts=2, answers=1, lowest=-1.0)
    assert known is not None
    assert known.mean == -0.25
    assert evaluate("m", "j", results_of([], []), prompts=2, answers=1) is None


@given(scores, st.data())
@pytest.mark.requirement("improvement-evaluation")
def test_to_fail_never_helps(values: list[float], data: st.DataObject) -> None:
    failed = data.draw(st.integers(0, len(values) - 1))
    whole = evaluate("m", "j", results_of(*([v] for v in values)), prompts=len(values), answers=1)
    less = results_of(*([v] if i != failed else [] for i, v in enumerate(values)))
    part = evaluate("m", "j", less, prompts=len(values), answers=1, lowest=-5.0)
    if part is not None:
        assert whole is not None
        assert part.mean <= whole.mean + 1e-9


@pytest.mark.requirement("improvement-evaluation")
def test_gains_are_paired_over_the_prompts_that_both_have() -> None:
    gain = paired_gain([0.0, 0.5, None, 1.0], [0.5, 1.0, 1.0, None])
    assert gain is not None
    # The same gain everywhere is certain, however much the scores differ.
    assert (gain.mean, gain.low, gain.high) == (0.5, 0.5, 0.5)
    assert paired_gain([None], [1.0]) is None
