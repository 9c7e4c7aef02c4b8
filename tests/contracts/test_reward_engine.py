"""What every reward engine does: one body over programs, operations, judges, combinations and classifiers."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import anyio
import pytest
from support.classifiers import CONTEXT, classifiers
from support.rewards import (
    RewardDouble,
    answers,
    error_of,
    functions,
    language_model,
    results_of,
    rewards,
    values_of,
    verdicts,
)

from ayllu.actors.engines.scripted import Step
from ayllu.actors.rewards.classifier.engine import ClassifierEngine
from ayllu.actors.rewards.engine import RewardEngine, Score
from ayllu.actors.rewards.registry import build_reward
from ayllu.actors.rewards.specs import AnyRewardSpec, CombinationSpec, JudgeSpec, ProgramSpec
from ayllu.bus import Bus, local_bus, serve
from ayllu.schemas import (
    EngineError,
    InvalidRequest,
    ScoreAnswerRequest,
    ScoreAnswerResponse,
    webmethod,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("reward-contract")]
__all__ = ["functions"]


@dataclass(frozen=True)
class Case:
    """An engine, and texts of which it is known what comes of them.

    Attributes:
        engine: the engine, open.
        better: an answer with a higher score than the next.
        worse: another one.
        broken: an answer that cannot be scored.
        within: how near two scores of one answer are.
    """

    engine: RewardEngine
    better: str = "good"
    worse: str = "bad"
    broken: str = "broken"
    within: float = 0.0


class Judging(Protocol):
    @webmethod(route="/judging")
    async def judging(self, request: ScoreAnswerRequest) -> ScoreAnswerResponse: ...


class JudgingActor(Judging):
    async def judging(self, request: ScoreAnswerRequest) -> ScoreAnswerResponse:
        if request.answer.content == "broken":
            raise InvalidRequest("it is broken")
        return ScoreAnswerResponse(float("good" in str(request.answer.content)))


@asynccontextmanager
async def of_spec(bus: Bus, spec: AnyRewardSpec) -> AsyncIterator[Case]:
    async with build_reward(spec, bus, [spec]) as engine:
        yield Case(engine)


def program(bus: Bus) -> AbstractAsyncContextManager[Case]:
    return of_spec(bus, ProgramSpec(name="p", function="support.reward_functions:by_word"))


@asynccontextmanager
async def operation(bus: Bus) -> AsyncIterator[Case]:
    async with anyio.create_task_group() as tasks:
        await tasks.start(serve, bus, JudgingActor())
        async with of_spec(bus, ProgramSpec(name="o", operation="judging")) as case:
            yield case
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def judge(bus: Bus) -> AsyncIterator[Case]:
    script: dict[str, Sequence[Step]] = {
        "good": [verdicts(yes=0.8, no=0.1)],
        "bad": [verdicts(no=0.8, yes=0.1)],
        "broken": [EngineError("it broke")],
    }
    async with language_model(bus, script):
        spec = JudgeSpec(name="j", model="lm", rubric="Say yes or no.")
        async with of_spec(bus, spec) as case:
            yield case


@asynccontextmanager
async def combination(bus: Bus) -> AsyncIterator[Case]:
    doubles = {"one": RewardDouble(), "two": RewardDouble()}
    for double in doubles.values():
        double.results = {"good": Score(1.0), "bad": Score(0.0), "broken": Score(0.5)}
    doubles["two"].results["broken"] = InvalidRequest("it is broken")
    async with rewards(bus, **doubles):
        spec = CombinationSpec(name="c", weights={"one": 1.0, "two": 2.0})
        async with of_spec(bus, spec) as case:
            yield case


@asynccontextmanager
async def classifier(_: Bus) -> AsyncIterator[Case]:
    async with ClassifierEngine(classifiers() / "whole") as engine:
        texts = ["good", "bad"]
        scores = values_of(await results_of(engine, answers(*texts)))
        # Its head is random.
        worse, better = (text for _, text in sorted(zip(scores, texts, strict=True)))
        yield Case(engine, better, worse, broken="too long" * CONTEXT, within=1e-4)


ENGINES: dict[str, Callable[[Bus], AbstractAsyncContextManager[Case]]] = {
    "classifier": classifier,
    "program": program,
    "operation": operation,
    "judge": judge,
    "combination": combination,
}


Open = Callable[[], AbstractAsyncContextManager[Case]]


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.slow if name == "classifier" else ())
        for name in ENGINES
    ]
)
def opened(request: pytest.FixtureRequest, functions: str) -> Open:
    # Not the case itself: pytest ends a fixture in another task than it began it in, and task groups do not bear that.
    @asynccontextmanager
    async def open_case() -> AsyncIterator[Case]:
        async with local_bus() as bus, ENGINES[request.param](bus) as made:
            yield made

    return open_case


async def test_it_tells_what_it_is(opened: Open) -> None:
    async with opened() as case:
        engine = case.engine
        assert engine.name
        assert engine.description
        assert engine.context >= 0
        if engine.lowest is not None and engine.highest is not None:
            assert engine.lowest <= engine.highest


async def test_each_answer_has_one_score_in_the_range(opened: Open) -> None:
    async with opened() as case:
        texts = [case.better, case.worse, case.better, case.worse, case.worse]
        scores = values_of(await results_of(case.engine, answers(*texts)))
        assert all(math.isfinite(score) for score in scores)
        low, high = case.engine.lowest, case.engine.highest
        assert low is None or min(scores) >= low
        assert high is None or max(scores) <= high
        assert scores[0] > scores[1]


async def test_no_answers_have_no_scores(opened: Open) -> None:
    async with opened() as case:
        assert await results_of(case.engine, []) == []


async def test_the_same_answer_has_the_same_score_whatever_stands_beside_it(opened: Open) -> None:
    async with opened() as case:
        [alone] = values_of(await results_of(case.engine, answers(case.better)))
        texts = [case.better, case.worse] * 10
        among = values_of(await results_of(case.engine, answers(*texts)))
        assert among[::2] == pytest.approx([alone] * 10, abs=case.within)
        again = values_of(await results_of(case.engine, answers(*texts)))
        assert again == pytest.approx(among, abs=case.within)


async def test_an_answer_that_cannot_be_scored_is_an_error_and_the_others_go_on(
    opened: Open,
) -> None:
    async with opened() as case:
        asked = answers(case.better, case.broken, case.worse)
        better, broken, worse = await results_of(case.engine, asked)
        assert error_of(broken).message
        assert values_of([better]) > values_of([worse])


async def test_many_callers_at_once_get_their_own(opened: Open) -> None:
    async with opened() as case:
        expected = values_of(await results_of(case.engine, answers(case.better, case.worse)))

        async def ask() -> None:
            found = values_of(await results_of(case.engine, answers(case.better, case.worse)))
            assert found == pytest.approx(expected, abs=case.within)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(ask)


async def test_whoever_leaves_or_is_cancelled_harms_nobody(opened: Open) -> None:
    async with opened() as case:
        asked = answers(*[case.better] * 50)
        with anyio.fail_after(60):
            async with aclosing(case.engine.score(asked)) as scores:
                await anext(scores)
            with anyio.move_on_after(0.01):
                await results_of(case.engine, asked)
        assert values_of(await results_of(case.engine, answers(case.better)))
