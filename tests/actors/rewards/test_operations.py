"""Operations of actors on the bus as reward models; the contract suite has the rest."""

from __future__ import annotations

from typing import Any, Protocol

import anyio
import pytest
from support.rewards import answers, error_of, results_of, values_of

from ayllu.actors.rewards.engine import RewardEngine
from ayllu.actors.rewards.registry import build_reward
from ayllu.actors.rewards.specs import ProgramSpec
from ayllu.bus import Bus, local_bus, serve
from ayllu.schemas import Message, ScoreAnswerRequest, ScoreAnswerResponse, webmethod

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("reward-operations")]


class Own(Protocol):
    @webmethod(route="/own/known")
    async def known(self, request: ScoreAnswerRequest) -> ScoreAnswerResponse: ...

    @webmethod(route="/own/odd")
    async def odd(self, request: ScoreAnswerRequest) -> Message: ...


class OwnActor(Own):
    async def known(self, request: ScoreAnswerRequest) -> ScoreAnswerResponse:
        if request.answer.content == "hang":
            await anyio.sleep_forever()
        if request.answer.content == "raise":
            raise ValueError("/srv/secret")
        return ScoreAnswerResponse(float(request.reference == request.answer.content))

    async def odd(self, request: ScoreAnswerRequest) -> Message:
        return request.answer


def engine_of(bus: Bus, operation: str, **values: Any) -> RewardEngine:
    spec = ProgramSpec(name="o", operation=operation, **values)
    return build_reward(spec, bus, [spec])


async def test_what_an_operation_answers_is_the_score() -> None:
    async with local_bus() as bus, anyio.create_task_group() as tasks:
        await tasks.start(serve, bus, OwnActor())
        async with engine_of(bus, "own.known", timeout=1.0) as engine:
            asked = answers("x", "hang", "raise", "y", reference="x")
            x, hung, raised, y = await results_of(engine, asked)
            assert values_of([x, y]) == [1.0, 0.0]
            assert error_of(hung).info.code == "deadline_exceeded"
            assert error_of(raised).info.code == "internal"
            assert "secret" not in error_of(raised).message
        tasks.cancel_scope.cancel()


async def test_another_answer_is_no_score() -> None:
    async with local_bus() as bus, anyio.create_task_group() as tasks:
        await tasks.start(serve, bus, OwnActor())
        async with engine_of(bus, "own.odd") as engine:
            [result] = await results_of(engine, answers("x"))
            assert "no score" in error_of(result).message
        tasks.cancel_scope.cancel()


async def test_an_operation_that_nobody_serves_is_waited_for_a_while() -> None:
    async with local_bus() as bus, engine_of(bus, "own.known", timeout=0.2) as engine:
        [result] = await results_of(engine, answers("x"))
    assert error_of(result).info.code == "unavailable"
