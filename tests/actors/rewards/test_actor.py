"""The reward actor over an engine that does as it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import anyio
import pytest
from support.rewards import RewardDouble, language_model, prompt, request, rewards, texts_of

from ayllu.actors.models import ModelsActor
from ayllu.actors.rewards.engine import Score
from ayllu.bus import client, local_bus, serve
from ayllu.schemas import (
    EngineDead,
    EngineError,
    InvalidRequest,
    KPromptGenerations,
    ModelNotFound,
    Models,
    RewardScoring,
    RewardScoringRequest,
)

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def served(double: RewardDouble) -> AsyncIterator[RewardScoring]:
    async with local_bus() as bus, rewards(bus, m=double) as scoring:
        with anyio.fail_after(20):
            yield scoring


@pytest.mark.requirement("reward-scored")
async def test_every_prompt_comes_back_with_its_answers_best_first() -> None:
    double = RewardDouble()
    async with served(double) as scoring:
        asked = request(prompt("1", "3", "2", asked="a?"), prompt("5", asked="b?"))
        response = await scoring.score(asked)
    first, second = response.scored_generations
    assert (first.prompt.content, first.index) == ("a?", 0)
    assert texts_of(first) == [("3", 3.0), ("2", 2.0), ("1", 1.0)]
    assert (second.prompt.content, second.index) == ("b?", 1)
    assert texts_of(second) == [("5", 5.0)]


@pytest.mark.requirement("reward-batched")
async def test_all_answers_of_all_prompts_go_to_the_engine_together() -> None:
    double = RewardDouble()
    async with served(double) as scoring:
        await scoring.score(request(prompt("1", "2"), prompt("3"), prompt("4", "5")))
    assert double.asked == [["1", "2", "3", "4", "5"]]


@pytest.mark.requirement("reward-scored")
async def test_equal_scores_keep_their_order() -> None:
    async with served(RewardDouble()) as scoring:
        response = await scoring.score(request(prompt("1", "2.0", "2", "1.0", "2.00")))
    [scored] = response.scored_generations
    assert [text for text, _ in texts_of(scored)] == ["2.0", "2", "2.00", "1", "1.0"]


@pytest.mark.requirement("reward-streamed")
async def test_prompts_come_as_they_are_done() -> None:
    double = RewardDouble()
    double.gates["1"] = anyio.Event()
    async with served(double) as scoring:
        stream = scoring.stream_score(request(prompt("1", "3"), prompt("2"), prompt("4")))
        assert [(await anext(aiter(stream))).index for _ in range(2)] == [1, 2]
        double.gates["1"].set()
        last = [scored async for scored in stream]
    assert [(scored.index, texts_of(scored)) for scored in last] == [(0, [("3", 3.0), ("1", 1.0)])]


@pytest.mark.requirement("reward-streamed")
async def test_the_whole_reply_has_the_order_of_the_request() -> None:
    double = RewardDouble()
    double.gates["1"] = anyio.Event()
    double.gates["1"].set()
    async with served(double) as scoring:
        response = await scoring.score(request(prompt("1"), prompt("2")))
    assert [scored.index for scored in response.scored_generations] == [0, 1]


@pytest.mark.requirement("reward-streamed")
async def test_leaving_a_stream_ends_the_work() -> None:
    double = RewardDouble()
    double.gates["1"] = anyio.Event()
    async with local_bus() as bus, rewards(bus, m=double) as scoring:
        with anyio.fail_after(20):
            stream = scoring.stream_score(request(prompt("1"), prompt("2")))
            await anext(aiter(stream))
            await stream.aclose()  # type: ignore[attr-defined]  # an EventStream
            while not double.closed:
                await anyio.wait_all_tasks_blocked()
    assert double.closed == 1


@pytest.mark.requirement("reward-threshold")
async def test_a_threshold_keeps_what_passes_and_what_failed() -> None:
    double = RewardDouble()
    double.results["x"] = EngineError("no")
    async with served(double) as scoring:
        asked = request(prompt("1", "2", "x", "3"), prompt("1"), threshold=2.0)
        first, second = (await scoring.score(asked)).scored_generations
    assert texts_of(first) == [("3", 3.0), ("2", 2.0)]
    assert [failed.index for failed in first.unscored] == [2]
    assert (texts_of(second), second.unscored) == ([], [])


@pytest.mark.requirement("reward-failures")
async def test_what_cannot_be_scored_is_told_apart_and_the_rest_goes_on() -> None:
    double = RewardDouble()
    double.results = {
        "x": InvalidRequest("why"),
        "nan": Score(float("nan")),
        "inf": Score(float("inf")),
    }
    async with served(double) as scoring:
        asked = request(prompt("x", "1", "nan"), prompt("inf"), prompt("2"))
        one, two, three = (await scoring.score(asked)).scored_generations
    assert texts_of(one) == [("1", 1.0)]
    assert [(failed.index, failed.code) for failed in one.unscored] == [
        (0, "invalid_request"),
        (2, "engine_error"),
    ]
    assert one.unscored[0].message == "why"
    assert (texts_of(two), len(two.unscored)) == ([], 1)
    assert texts_of(three) == [("2", 2.0)]


@pytest.mark.requirement("reward-refused")
@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ([], "prompt_generations is empty"),
        ([prompt("1"), prompt("1"), prompt("1"), prompt()], r"prompt_generations\[3\].k_generat"),
    ],
)
async def test_a_request_without_answers_is_refused(
    prompts: list[KPromptGenerations], said: str
) -> None:
    double = RewardDouble()
    async with served(double) as scoring:
        asked = RewardScoringRequest(prompt_generations=prompts, model="m")
        with pytest.raises(InvalidRequest, match=said):
            await scoring.score(asked)
        with pytest.raises(InvalidRequest, match=said):
            await anext(aiter(scoring.stream_score(asked)))
    assert double.asked == []


@pytest.mark.requirement("reward-refused")
async def test_an_unknown_reward_model_is_told_which_there_are() -> None:
    async with local_bus() as bus, rewards(bus, m=RewardDouble(), n=RewardDouble()) as scoring:
        with pytest.raises(ModelNotFound) as refused:
            await scoring.score(request(prompt("1"), model="x"))
    assert refused.value.details["served"] == ["m", "n"]


async def test_the_death_of_the_engine_ends_the_call_and_the_actor() -> None:
    double = RewardDouble()
    double.results["x"] = EngineDead("gone")
    with pytest.raises(ExceptionGroup) as ended:
        async with served(double) as scoring:
            with pytest.raises(EngineDead):
                await scoring.score(request(prompt("1", "x")))
            await anyio.sleep_forever()
    assert ended.group_contains(EngineDead)


async def test_an_engine_that_leaves_answers_out_is_an_error() -> None:
    class Forgetful(RewardDouble):
        async def score(self, answers):  # type: ignore[no-untyped-def]
            async with aclosing(super().score(answers[:-1])) as scores:
                async for scored in scores:
                    yield scored

    async with served(Forgetful()) as scoring:
        with pytest.raises(EngineError):
            await scoring.score(request(prompt("1", "2")))


@pytest.mark.requirement("reward-described")
async def test_it_is_listed_among_the_models_with_range_and_meaning() -> None:
    double = RewardDouble()
    double.lowest, double.highest = -1.0, 1.0
    async with local_bus() as bus, rewards(bus, m=double), anyio.create_task_group() as tasks:
        await tasks.start(serve, bus, ModelsActor(bus))
        [model] = [model async for model in client(Models, bus).models()]
        assert (model.name, model.kind, model.engine) == ("m", "reward", "double")
        assert (model.lowest_score, model.highest_score) == (-1.0, 1.0)
        assert model.description == "what the answer says"
        tasks.cancel_scope.cancel()


async def test_a_language_model_of_the_same_name_is_listed_beside_it() -> None:
    # As where one was registered before the deployment had a reward model of this name.
    async with (
        local_bus() as bus,
        language_model(bus, {}, name="m"),
        rewards(bus, m=RewardDouble()),
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(serve, bus, ModelsActor(bus))
        listed = [model async for model in client(Models, bus).models()]
        assert [(one.name, one.kind, one.actors) for one in listed] == [
            ("m", "language", 1),
            ("m", "reward", 1),
        ]
        tasks.cancel_scope.cancel()


async def test_it_counts_what_it_does() -> None:
    double = RewardDouble()
    double.results["x"] = EngineError("no")
    async with local_bus() as bus, rewards(bus, m=double) as scoring:
        await scoring.score(request(prompt("1", "x", "2")))
        [stats] = await bus.transport.stats("rewards")
    assert {"model": "m", "scored": 2, "unscored": 1}.items() <= stats.data.items()
