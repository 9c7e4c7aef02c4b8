"""What becomes of candidates."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ayllu.actors.synthetic.filters import NEEDS_K, NEEDS_P, TAKES_K
from ayllu.actors.synthetic.selection import (
    DEFAULT_WAVES,
    Candidate,
    Failure,
    Group,
    Selection,
    Sieve,
    is_reached,
    most_candidates,
    select,
)
from ayllu.schemas import (
    Attachment,
    FilteringFunction,
    InvalidRequest,
    Message,
    PromptStatistics,
    RewardScoringConfig,
    Role,
    SyntheticDataGenerationRequest,
    ToolCall,
    UnscoredGeneration,
    decode,
    encode,
)

Function = FilteringFunction
PROMPTS = [Message(Role.user, text) for text in ("one", "two", "three")]
FATES = (
    *("failed", "unscored", "below_threshold", "duplicates"),
    *("filtered_out", "accepted", "surplus"),
)
LOST = Candidate(None, Failure("engine_error", "it died"))


def answer(text: str, score: float | Failure = 0.0) -> Candidate:
    return Candidate(Message(Role.assistant, text), score, prompt_tokens=2, completion_tokens=3)


def request_of(**fields: object) -> SyntheticDataGenerationRequest:
    return SyntheticDataGenerationRequest(**{"prompts": PROMPTS, **fields})  # type: ignore[arg-type]


CANDIDATES = st.one_of(
    st.just(LOST),
    st.builds(
        answer,
        st.sampled_from(["a b c d", "A b c d", "a b c e", "f", "g h", "i", "j k l"]),
        st.sampled_from([0.0, 0.5, 1.0, -1.0, Failure("invalid_request", "too long")])
        | st.floats(-5, 5),
    ),
)


@st.composite
def requests(draw: st.DrawFn) -> SyntheticDataGenerationRequest:
    function = draw(st.sampled_from(list(Function)))
    takes_k = function in NEEDS_K or (function in TAKES_K and draw(st.booleans()))
    threshold = draw(st.none() | st.floats(-1, 1))
    return request_of(
        filtering_function=function,
        k=draw(st.integers(1, 4)) if takes_k else None,
        p=draw(st.floats(0, 1, exclude_min=True)) if function in NEEDS_P else None,
        reward_scoring=draw(st.sampled_from([None, RewardScoringConfig("judge", threshold)])),
        max_similarity=draw(st.none() | st.sampled_from([0.7, 1.0])),
    )


@st.composite
def finished(draw: st.DrawFn) -> list[Group]:
    """Return groups in their order; some may be missing, as not yet finished."""
    places = [(wave, prompt) for wave in range(3) for prompt in range(len(PROMPTS))]
    there = draw(st.lists(st.sampled_from(places), unique=True).map(sorted))
    return [Group(prompt, wave, draw(st.lists(CANDIDATES, max_size=5))) for wave, prompt in there]


SEED = st.integers(0, 2**32 - 2)


def texts_of(selection: Selection) -> dict[int | None, list[object]]:
    return {
        prompt.index: [scored.message.content for scored in prompt.k_scored_generations]
        for prompt in selection.accepted
    }


def counts_of(selection: Selection) -> dict[str, int]:
    counts = {fate: getattr(selection.statistics, fate) for fate in FATES}
    return {fate: count for fate, count in counts.items() if count}


@pytest.mark.requirement("synthetic-counts")
@given(requests(), finished(), st.none() | st.integers(1, 6), SEED)
def test_every_candidate_is_counted_once(
    request: SyntheticDataGenerationRequest, groups: list[Group], target: int | None, seed: int
) -> None:
    found = select(replace(request, target=target), groups, seed=seed)
    figures = found.statistics
    candidates = [candidate for group in groups for candidate in group.candidates]
    assert sum(getattr(figures, fate) for fate in FATES) == figures.candidates == len(candidates)
    scores = [candidate.score for candidate in candidates if isinstance(candidate.score, float)]
    assert figures.before.count == len(scores)
    assert figures.after.count == figures.accepted
    assert figures.accepted == sum(len(each.k_scored_generations) for each in found.accepted)
    assert figures.unscored == sum(len(each.unscored) for each in found.accepted)
    assert sum(figures.errors.values()) == figures.failed + figures.unscored
    assert sum(each.candidates for each in figures.per_prompt) == figures.candidates
    assert sum(each.accepted for each in figures.per_prompt) == figures.accepted
    assert figures.prompts == len({group.prompt for group in groups})
    assert figures.seconds == 0


@pytest.mark.requirement("synthetic-repeatable")
@given(requests(), finished(), SEED, st.randoms(use_true_random=False))
def test_the_order_in_which_groups_finished_does_not_matter(
    request: SyntheticDataGenerationRequest, groups: list[Group], seed: int, shuffler: Random
) -> None:
    shuffled = shuffler.sample(groups, len(groups))
    assert select(request, shuffled, seed=seed) == select(request, groups, seed=seed)


@pytest.mark.requirement("synthetic-repeatable")
@given(requests(), finished(), st.none() | st.integers(1, 6), st.integers(0, 9), SEED)
def test_later_groups_never_change_what_was_accepted(
    request: SyntheticDataGenerationRequest,
    groups: list[Group],
    target: int | None,
    until: int,
    seed: int,
) -> None:
    request = replace(request, target=target)
    before = texts_of(select(request, groups[:until], seed=seed))
    after = texts_of(select(request, groups, seed=seed))
    for index, texts in before.items():
        later = list(after[index])
        for text in texts:
            later.remove(text)


@pytest.mark.requirement("synthetic-target")
@given(requests(), finished(), st.integers(1, 6), SEED)
def test_a_target_is_met_to_the_one(
    request: SyntheticDataGenerationRequest, groups: list[Group], target: int, seed: int
) -> None:
    free = select(request, groups, seed=seed)
    bounded_request = replace(request, target=target)
    bounded = select(bounded_request, groups, seed=seed)
    assert bounded.statistics.accepted == min(target, free.statistics.accepted)
    assert bounded.statistics.surplus == free.statistics.accepted - bounded.statistics.accepted
    assert is_reached(bounded_request, bounded) == (free.statistics.accepted >= target)
    assert not is_reached(request, free)


@given(requests(), finished(), SEED)
def test_answers_come_best_first(
    request: SyntheticDataGenerationRequest, groups: list[Group], seed: int
) -> None:
    for prompt in select(request, groups, seed=seed).accepted:
        scores = [scored.score for scored in prompt.k_scored_generations]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.requirement("synthetic-sieve")
def test_a_candidate_is_counted_by_the_first_thing_that_stops_it() -> None:
    request = request_of(
        filtering_function=Function.top_k,
        k=2,
        reward_scoring=RewardScoringConfig("judge", 0.5),
        max_similarity=1.0,
        target=1,
    )
    group = Group(
        *(1, 0),
        [
            LOST,
            answer("too long", Failure("invalid_request", "too long")),
            answer("bad", 0.49),
            answer("good", 0.5),
            answer("GOOD", 0.5),
            answer("better", 0.75),
            answer("best", 1.0),
        ],
    )
    found = select(request, [group], seed=0)
    # Two pass the filter, of which one is beyond the target.
    assert counts_of(found) == dict.fromkeys(FATES, 1)
    [prompt] = found.accepted
    assert (prompt.index, prompt.prompt) == (1, PROMPTS[1])
    assert [scored.message.content for scored in prompt.k_scored_generations] == ["best"]
    assert prompt.unscored == [UnscoredGeneration(1, "invalid_request", "too long")]
    figures = found.statistics
    assert figures.per_prompt == [PromptStatistics(1, 7, 1, best=1.0)]
    assert figures.errors == {"engine_error": 1, "invalid_request": 1}
    assert (figures.prompt_tokens, figures.completion_tokens) == (12, 18)
    assert (figures.before.count, figures.after.quantiles) == (5, [1.0] * 5)


@pytest.mark.requirement("synthetic-duplicates")
def test_duplicates_are_those_of_one_prompt_over_all_its_waves() -> None:
    groups = [
        Group(0, 0, [answer("yes"), answer("no")]),
        Group(1, 0, [answer("yes")]),
        Group(0, 1, [answer("Yes"), answer("perhaps")]),
    ]
    found = select(request_of(max_similarity=1.0), groups, seed=0)
    assert texts_of(found) == {0: ["yes", "no", "perhaps"], 1: ["yes"]}
    assert counts_of(found) == {"accepted": 4, "duplicates": 1}
    assert counts_of(select(request_of(), groups, seed=0)) == {"accepted": 5}


def test_what_is_below_the_threshold_makes_no_duplicates_but_what_the_filter_leaves_does() -> None:
    request = request_of(
        filtering_function=Function.top_k,
        k=1,
        reward_scoring=RewardScoringConfig("judge", 0.5),
        max_similarity=1.0,
    )
    groups = [
        Group(0, 0, [answer("a", 0.4), answer("b", 0.6), answer("c", 0.7)]),
        Group(0, 1, [answer("a", 0.5), answer("b", 0.9)]),
    ]
    found = select(request, groups, seed=0)
    assert texts_of(found) == {0: ["c", "a"]}
    assert counts_of(found) == {
        **{"below_threshold": 1, "duplicates": 1, "filtered_out": 1},
        **{"accepted": 2},
    }


def test_a_reward_model_without_a_threshold_lets_all_pass() -> None:
    request = request_of(reward_scoring=RewardScoringConfig("judge"))
    assert counts_of(select(request, [Group(0, 0, [answer("a", -9.0)])], seed=0)) == {"accepted": 1}


def test_answers_that_are_more_than_text_are_compared_by_all_of_it() -> None:
    message = Message(Role.assistant, "", tool_calls=[ToolCall("f", {"x": 1})])
    other = replace(message, tool_calls=[ToolCall("f", {"x": 2})])
    drawn = Message(Role.assistant, Attachment("data:,x", "text/plain"))
    candidates = [Candidate(each, 0.0) for each in (message, other, drawn, message, drawn)]
    found = select(request_of(max_similarity=1.0), [Group(0, 0, candidates)], seed=0)
    assert counts_of(found) == {"accepted": 3, "duplicates": 2}


def test_a_prompt_of_which_nothing_is_accepted_is_there_and_an_unfinished_one_is_not() -> None:
    found = select(request_of(), [Group(2, 0, [LOST]), Group(0, 0, [])], seed=0)
    assert texts_of(found) == {0: [], 2: []}
    assert found.statistics.per_prompt == [PromptStatistics(0, 0, 0), PromptStatistics(2, 1, 0)]
    assert select(request_of(), [], seed=0).accepted == []


def test_unscored_answers_are_told_by_their_place_among_all_of_their_prompt() -> None:
    lost = answer("x", Failure("timeout", "too slow"))
    groups = [Group(0, 0, [answer("a"), lost]), Group(0, 1, [lost])]
    [prompt] = select(request_of(), groups, seed=0).accepted
    assert [each.index for each in prompt.unscored] == [1, 2]


@pytest.mark.requirement("synthetic-target")
def test_the_target_is_taken_from_the_first_groups_and_the_best_of_the_last_one() -> None:
    groups = [
        Group(1, 0, [answer("c", 9.0)]),
        Group(0, 1, [answer("d", 1.0), answer("e", 2.0), answer("f", 3.0)]),
        Group(0, 0, [answer("a", 1.0), answer("b", 0.0)]),
        Group(1, 1, [answer("g", 10.0)]),
    ]
    found = select(request_of(target=5), groups, seed=0)
    assert texts_of(found) == {0: ["f", "e", "a", "b"], 1: ["c"]}
    assert counts_of(found) == {"accepted": 5, "surplus": 2}


@pytest.mark.requirement("synthetic-repeatable")
def test_a_group_is_filtered_by_its_own_seed() -> None:
    request = request_of(filtering_function=Function.random)
    candidates = [answer(str(number)) for number in range(32)]
    both = [Group(0, 0, candidates), Group(1, 0, candidates)]
    kept = texts_of(select(request, both, seed=5))
    assert kept[0] != kept[1]
    assert texts_of(select(request, both[1:], seed=5))[1] == kept[1]
    assert texts_of(select(request, both, seed=6)) != kept


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_without_a_rank_is_refused_even_below_the_threshold(score: float) -> None:
    request = request_of(reward_scoring=RewardScoringConfig("judge", 0.5))
    with pytest.raises(InvalidRequest):
        select(request, [Group(0, 0, [answer("a", score)])], seed=0)


@pytest.mark.parametrize("second", [Group(1, 0, []), Group(0, 0, []), Group(2, 0, [])])
def test_groups_go_through_the_sieve_once_and_in_their_order(second: Group) -> None:
    sieve = Sieve(request_of(), seed=0)
    sieve.add(Group(2, 0, []))
    with pytest.raises(ValueError, match="comes after"):
        sieve.add(second)


@pytest.mark.requirement("synthetic-target")
@pytest.mark.parametrize(
    ("fields", "waves"),
    [
        ({}, 1),
        ({"target": 12}, DEFAULT_WAVES),
        ({"target": 13}, 2 * DEFAULT_WAVES),
        ({"target": 12, "filtering_function": Function.top_k, "k": 1}, 4 * DEFAULT_WAVES),
        ({"target": 12, "filtering_function": Function.random, "k": 9}, DEFAULT_WAVES),
        ({"target": 12, "filtering_function": Function.random}, DEFAULT_WAVES),
    ],
)
def test_a_request_takes_one_wave_or_enough_to_reach_its_target(
    fields: dict[str, object], waves: int
) -> None:
    assert most_candidates(request_of(**fields), 4) == waves * len(PROMPTS) * 4


def test_a_request_may_say_how_many_candidates_it_takes() -> None:
    assert most_candidates(request_of(target=5, max_candidates=7), 4) == 7


def test_groups_survive_the_wire() -> None:
    group = Group(1, 2, [LOST, answer("a", 0.5), answer("b", Failure("timeout", "late"))])
    assert decode(encode(group), Group) == group
