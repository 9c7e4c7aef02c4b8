"""Filters: what they keep of a group, the seeds of their choices, and the requests that are refused."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.actors.synthetic.filters import (
    NEEDS_SCORES,
    SEEDS,
    candidate_seed,
    check_filter,
    chosen,
    group_seed,
)
from ayllu.schemas import (
    FilteringFunction,
    InvalidRequest,
    Message,
    Role,
    SamplingParams,
    SyntheticDataGenerationRequest,
    decode,
    encode,
)

Function = FilteringFunction
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCORES = st.lists(FINITE | st.sampled_from([0.0, 0.5, 1.0]), max_size=24)
GROUPS = st.lists(st.floats(-30, 30) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=24)
FUNCTIONS = st.sampled_from(list(Function))
KS = st.integers(1, 30)
PS = st.floats(0, 1, exclude_min=True)
SEED = st.integers(0, SEEDS - 1)


def kept_of(
    function: Function,
    scores: list[float],
    *,
    k: int | None = None,
    p: float | None = None,
    seed: int = 0,
) -> list[int]:
    return chosen(function, scores, k=k, p=p, generator=Random(seed))


def ranked(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))


def shares(scores: list[float]) -> list[float]:
    """Return the softmax of some scores."""
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / math.fsum(weights) for weight in weights]


@pytest.mark.requirement("synthetic-filters")
@given(FUNCTIONS, SCORES, KS, PS, SEED)
def test_what_is_kept_is_a_subset_best_first_and_ties_keep_their_order(
    function: Function, scores: list[float], k: int, p: float, seed: int
) -> None:
    kept = kept_of(function, scores, k=k, p=p, seed=seed)
    assert kept == [place for place in ranked(scores) if place in kept]


@pytest.mark.requirement("synthetic-repeatable")
@given(FUNCTIONS, SCORES, KS, PS, SEED)
def test_the_same_seed_makes_the_same_choice(
    function: Function, scores: list[float], k: int, p: float, seed: int
) -> None:
    first = kept_of(function, scores, k=k, p=p, seed=seed)
    assert kept_of(function, scores, k=k, p=p, seed=seed) == first


@pytest.mark.requirement("synthetic-filters")
@given(FUNCTIONS, st.integers(0, 12), KS, PS, SEED, st.randoms(use_true_random=False))
def test_the_order_in_which_candidates_stand_does_not_change_which_scores_are_kept(
    function: Function, count: int, k: int, p: float, seed: int, shuffler: Random
) -> None:
    scores = [float(number // 3) for number in range(count)]
    shuffled = shuffler.sample(scores, count)
    first = [scores[place] for place in kept_of(function, scores, k=k, p=p, seed=seed)]
    second = [shuffled[place] for place in kept_of(function, shuffled, k=k, p=p, seed=seed)]
    assert first == second


@pytest.mark.requirement("synthetic-filters")
@given(SCORES, KS)
def test_none_keeps_all_and_top_k_the_best(scores: list[float], k: int) -> None:
    assert kept_of(Function.none, scores) == ranked(scores)
    assert kept_of(Function.top_k, scores, k=k) == ranked(scores)[:k]


@pytest.mark.requirement("synthetic-filters")
@given(GROUPS, PS)
def test_top_p_keeps_what_is_enough_and_no_more(scores: list[float], p: float) -> None:
    kept = kept_of(Function.top_p, scores, p=p)
    assert kept == ranked(scores)[: len(kept)]
    share = shares(scores)
    assert math.fsum(share[place] for place in kept) >= p - 1e-9
    assert len(kept) == 1 or p == 1 or math.fsum(share[place] for place in kept[:-1]) < p + 1e-9


@pytest.mark.requirement("synthetic-filters")
@given(GROUPS, KS, PS)
def test_top_k_top_p_takes_the_share_of_the_k_best(scores: list[float], k: int, p: float) -> None:
    best = ranked(scores)[:k]
    among = kept_of(Function.top_p, [scores[place] for place in best], p=p)
    assert kept_of(Function.top_k_top_p, scores, k=k, p=p) == [best[place] for place in among]


def test_the_order_of_top_k_top_p_shows() -> None:
    # Each has a third of all, and half of what two have.
    equal = [1.0, 1.0, 1.0]
    assert kept_of(Function.top_p, equal, p=0.5) == [0, 1]
    assert kept_of(Function.top_k_top_p, equal, k=2, p=0.5) == [0]


@pytest.mark.requirement("synthetic-filters")
@pytest.mark.parametrize(
    "scores", [[], [3.0], [1.0, 1.0, 1.0], [0.0, -1000.0, 1000.0], [1e308, -1e308]]
)
def test_a_share_of_one_keeps_all_and_a_tiny_one_the_best(scores: list[float]) -> None:
    assert kept_of(Function.top_p, scores, p=1.0) == ranked(scores)
    assert kept_of(Function.top_p, scores, p=1e-300) == ranked(scores)[:1]
    assert kept_of(Function.top_k_top_p, scores, k=99, p=1.0) == ranked(scores)


def test_equal_scores_have_equal_shares() -> None:
    assert [
        len(kept_of(Function.top_p, [7.0] * 4, p=p)) for p in (0.25, 0.26, 0.5, 0.75, 0.76)
    ] == [*(1, 2, 2, 3, 4)]


@pytest.mark.requirement("synthetic-filters")
def test_random_keeps_every_subset_as_often() -> None:
    rounds = 8000
    subsets = Counter(
        tuple(kept_of(Function.random, [0.0] * 3, seed=seed)) for seed in range(rounds)
    )
    assert set(subsets) == {places for size in range(4) for places in combinations(range(3), size)}
    assert all(abs(count - rounds / 8) < 0.03 * rounds for count in subsets.values())


@pytest.mark.requirement("synthetic-filters")
def test_random_keeps_every_k_as_often_whatever_their_scores() -> None:
    rounds = 6000
    subsets = Counter(
        tuple(kept_of(Function.random, [3.0, 2.0, 1.0, 0.0], k=2, seed=seed))
        for seed in range(rounds)
    )
    assert set(subsets) == set(combinations(range(4), 2))
    assert all(abs(count - rounds / 6) < 0.03 * rounds for count in subsets.values())
    assert kept_of(Function.random, [1.0, 2.0], k=5) == [1, 0]


@pytest.mark.requirement("synthetic-filters")
def test_sigmoid_keeps_each_with_its_probability() -> None:
    scores, rounds = [-2.0, 0.0, 1.5], 6000
    counts = Counter(
        place for seed in range(rounds) for place in kept_of(Function.sigmoid, scores, seed=seed)
    )
    for place, score in enumerate(scores):
        assert abs(counts[place] / rounds - 1 / (1 + math.exp(-score))) < 0.03
    assert kept_of(Function.sigmoid, [1e308, -1e308]) == [0]


def test_choices_are_those_of_every_version() -> None:
    """The numbers are written down: a change would change what users' seeds give."""
    scores = [0.5, 2.0, -1.0, 0.0, 1.0]
    assert kept_of(Function.random, scores, seed=group_seed(7, 0, 0)) == [4]
    assert kept_of(Function.random, scores, k=2, seed=group_seed(7, 0, 0)) == [4, 3]
    assert kept_of(Function.sigmoid, scores, seed=group_seed(7, 0, 0)) == [1, 4]
    assert group_seed(7, 1, 2) == 6829217932930583202
    assert candidate_seed(7, 1, 2, 3) == 3487876045


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("function", list(Function))
def test_a_score_without_a_rank_is_refused(function: Function, score: float) -> None:
    with pytest.raises(InvalidRequest):
        kept_of(function, [1.0, score], k=1, p=0.5)


@pytest.mark.requirement("synthetic-repeatable")
@given(SEED, SEED, st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 63))
def test_seeds_fit_and_depend_on_each_part(
    seed: int, other: int, prompt: int, wave: int, number: int
) -> None:
    found = candidate_seed(seed, prompt, wave, number)
    assert decode(encode(SamplingParams(seed=found)), SamplingParams).seed == found
    groups = {(s, p, w) for s in (seed, other) for p in (prompt, wave) for w in (prompt, wave)}
    assert len({group_seed(*group) for group in groups}) == len(groups)


@pytest.mark.requirement("synthetic-repeatable")
def test_candidates_of_a_prompt_have_different_seeds() -> None:
    places = [
        (prompt, wave, number) for prompt in range(4) for wave in range(16) for number in range(64)
    ]
    assert len({candidate_seed(0, *place) for place in places}) == len(places)


def request_of(**fields: object) -> SyntheticDataGenerationRequest:
    prompts = [Message(Role.user, "one"), Message(Role.user, "two")]
    return SyntheticDataGenerationRequest(**{"prompts": prompts, **fields})  # type: ignore[arg-type]


@pytest.mark.requirement("synthetic-refused")
@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("prompts", {"prompts": []}),
        ("references", {"references": ["a"]}),
        ("references", {"references": ["a", "b", "c"]}),
        ("k", {"filtering_function": Function.top_k}),
        ("k", {"filtering_function": Function.top_k_top_p, "p": 0.5}),
        ("k", {"k": 1}),
        ("k", {"filtering_function": Function.top_p, "k": 1, "p": 0.5}),
        ("k", {"filtering_function": Function.sigmoid, "k": 1}),
        ("p", {"filtering_function": Function.top_p}),
        ("p", {"filtering_function": Function.top_k_top_p, "k": 1}),
        ("p", {"p": 0.5}),
        ("p", {"filtering_function": Function.random, "k": 1, "p": 0.5}),
        ("p", {"filtering_function": Function.top_k, "k": 1, "p": 0.5}),
        ("p", {"filtering_function": Function.sigmoid, "p": 0.5}),
        ("max_candidates", {"max_candidates": 8}),
        ("max_candidates", {"target": 9, "max_candidates": 8}),
    ],
)
def test_a_contradiction_is_refused_by_its_field(field: str, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: "):
        check_filter(request_of(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"references": ["a", None]},
        {"filtering_function": Function.random},
        {"filtering_function": Function.random, "k": 2},
        {"filtering_function": Function.top_k, "k": 2},
        {"filtering_function": Function.top_p, "p": 1.0},
        {"filtering_function": Function.top_k_top_p, "k": 2, "p": 0.5},
        {"filtering_function": Function.sigmoid},
        {"target": 8},
        {"target": 8, "max_candidates": 8},
    ],
)
def test_what_has_a_meaning_is_accepted(fields: dict[str, object]) -> None:
    check_filter(request_of(**fields))


def test_only_two_functions_do_without_scores() -> None:
    assert set(Function) - NEEDS_SCORES == {Function.none, Function.random}
