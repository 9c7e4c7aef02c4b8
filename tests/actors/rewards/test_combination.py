"""Combinations of reward models on the bus."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import anyio
import pytest
from support.rewards import (
    RewardDouble,
    answers,
    error_of,
    prompt,
    request,
    results_of,
    rewards,
    texts_of,
    values_of,
)

from ayllu.actors.rewards import combination
from ayllu.actors.rewards.asking import Patience
from ayllu.actors.rewards.engine import Answer, Score
from ayllu.actors.rewards.registry import build_reward
from ayllu.actors.rewards.specs import CombinationSpec, JudgeSpec, ProgramSpec
from ayllu.bus import local_bus
from ayllu.schemas import ActorLost, AylluError, DeadlineExceeded, InvalidRequest

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("reward-combination")]

SPEC = CombinationSpec(name="c", weights={"one": 1.0, "two": 3.0})


async def test_the_score_is_the_weighted_mean_and_tells_its_parts() -> None:
    one, two = RewardDouble(), RewardDouble()
    one.results = {"x": Score(0.0)}
    two.results = {"x": Score(1.0)}
    async with local_bus() as bus, rewards(bus, SPEC, one=one, two=two) as scoring:
        response = await scoring.score(request(prompt("x", "2", "0.5"), model="c"))
    [scored] = response.scored_generations
    assert texts_of(scored) == [("2", 2.0), ("x", 0.75), ("0.5", 0.5)]
    assert scored.k_scored_generations[1].parts == {"one": 0.0, "two": 1.0}


async def test_an_answer_that_a_part_cannot_score_is_unscored_with_its_error() -> None:
    one, two = RewardDouble(), RewardDouble()
    one.results = {"x": Score(1.0)}
    two.results = {"x": InvalidRequest("too odd")}
    async with local_bus() as bus, rewards(bus, SPEC, one=one, two=two) as scoring:
        response = await scoring.score(request(prompt("1", "x"), model="c"))
    [scored] = response.scored_generations
    assert texts_of(scored) == [("1", 1.0)]
    [failed] = scored.unscored
    assert (failed.index, failed.code, failed.message) == (1, "invalid_request", "two: too odd")


async def test_equal_answers_are_told_apart() -> None:
    one, two = RewardDouble(), RewardDouble()
    async with local_bus() as bus, rewards(bus, one=one, two=two):
        async with build_reward(SPEC, bus, [SPEC]) as engine:
            assert values_of(await results_of(engine, answers("1", "1", "2", "1"))) == [1, 1, 2, 1]


async def test_parts_are_asked_in_batches_and_an_answer_is_told_when_all_have_scored_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(combination, "BATCH", 2)
    one, two = RewardDouble(), RewardDouble()
    two.gates["3"] = anyio.Event()
    async with local_bus() as bus, rewards(bus, one=one, two=two):
        async with build_reward(SPEC, bus, [SPEC]) as engine:
            with anyio.fail_after(20):
                async with aclosing(engine.score(answers("1", "2", "3", "4", "5"))) as scores:
                    found = [(await anext(scores))[0] for _ in range(4)]
                    two.gates["3"].set()
                    found += [index async for index, _ in scores]
    assert sorted(found[:4]) == [0, 1, 3, 4]
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert [len(texts) for texts in one.asked] == [2, 2, 1]


async def test_a_part_that_is_not_served_is_the_error_of_each_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(combination, "PATIENCE", 0.0)
    async with local_bus() as bus, rewards(bus, one=RewardDouble()):
        async with build_reward(SPEC, bus, [SPEC]) as engine:
            for result in await results_of(engine, answers("1", "2")):
                assert error_of(result).info.code == "model_not_found"
                assert error_of(result).message.startswith("two: ")


async def test_what_a_part_said_before_it_was_lost_stays_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(combination, "PATIENCE", 0.0)

    class Leaving(RewardDouble):
        async def score(
            self, answers: Sequence[Answer]
        ) -> AsyncGenerator[tuple[int, Score | AylluError], None]:
            self.asked.append([str(answer.message.content) for answer in answers])
            if "1" in self.asked[-1]:
                yield 0, Score(1.0)
            raise ActorLost("gone")

    one, two = RewardDouble(), Leaving()
    async with local_bus() as bus, rewards(bus, one=one, two=two):
        async with build_reward(SPEC, bus, [SPEC]) as engine:
            first, *lost = await results_of(engine, answers("1", "2", "3"))
    assert values_of([first]) == [1.0]
    assert [error_of(result).info.code for result in lost] == ["actor_lost", "actor_lost"]
    assert two.asked[0] == ["1", "2", "3"]
    assert all(texts == ["2", "3"] for texts in two.asked[1:])


async def test_a_part_that_is_lost_after_long_work_is_waited_for_all_the_same() -> None:
    patience = Patience(0.01)
    asked = 0

    async def ask() -> str:
        nonlocal asked
        asked += 1
        if asked == 1:
            await anyio.sleep(0.05)  # Longer than anything may be away.
            raise ActorLost("gone")
        return "here"

    assert await patience.bear(ask) == "here"


async def test_a_part_that_is_slow_is_not_asked_again() -> None:
    asked = 0

    async def ask() -> str:
        nonlocal asked
        asked += 1
        raise DeadlineExceeded("too slow")

    with pytest.raises(DeadlineExceeded):
        await Patience(30.0).bear(ask)
    assert asked == 1


async def test_combinations_of_combinations() -> None:
    outer = CombinationSpec(name="outer", weights={"c": 1.0, "one": 1.0})
    one, two = RewardDouble(), RewardDouble()
    one.results = {"x": Score(0.0)}
    two.results = {"x": Score(1.0)}
    async with local_bus() as bus, rewards(bus, SPEC, outer, one=one, two=two) as scoring:
        response = await scoring.score(request(prompt("x"), model="outer"))
    [scored] = response.scored_generations
    assert scored.k_scored_generations[0].parts == {"c": 0.75, "one": 0.0}


async def test_its_range_follows_from_those_of_its_parts() -> None:
    judge = JudgeSpec(name="one", model="lm", verdicts={"1": 1.0, "5": 5.0})
    program = ProgramSpec(name="two", function="exact_answer", lowest=-1.0)
    async with local_bus() as bus:
        engine = build_reward(SPEC, bus, [SPEC, judge, program])
        assert (engine.lowest, engine.highest) == (-0.5, 2.0)
        elsewhere = build_reward(SPEC, bus, [SPEC, judge])
        assert (elsewhere.lowest, elsewhere.highest) == (None, None)


@pytest.mark.parametrize("value", ["0.3", "0.7", "0.9"])
async def test_what_all_parts_say_the_combination_says(value: str) -> None:
    spec = CombinationSpec(name="c", weights={"one": 0.1, "two": 0.1, "three": 0.1})
    parts = {name: RewardDouble() for name in spec.weights}
    async with local_bus() as bus, rewards(bus, spec, **parts) as scoring:
        asked = request(prompt(value), model="c", threshold=float(value))
        [scored] = (await scoring.score(asked)).scored_generations
    assert texts_of(scored) == [(value, float(value))]
