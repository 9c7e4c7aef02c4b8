"""Answers that are scored one by one."""

from __future__ import annotations

import anyio
import pytest
from support.rewards import answers, error_of

from ayllu.actors.rewards.engine import Answer, Score
from ayllu.actors.rewards.items import OneByOne, Result
from ayllu.schemas import InvalidRequest

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("reward-contract")]


async def scored(engine: OneByOne, *texts: str) -> list[Result]:
    found = {index: result async for index, result in engine(answers(*texts))}
    return [found[index] for index in range(len(texts))]


@pytest.mark.parametrize("at_once", [1, 2])
async def test_no_more_are_scored_at_once_than_may_be_whoever_asks(at_once: int) -> None:
    running: list[int] = []
    now = 0

    async def score(_: Answer) -> Score:
        nonlocal now
        now += 1
        running.append(now)
        await anyio.wait_all_tasks_blocked()
        now -= 1
        return Score(1.0)

    engine = OneByOne(score, at_once=at_once)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as callers:
            for _ in range(3):
                callers.start_soon(scored, engine, "a", "b", "c")
    assert len(running) == 9
    assert max(running) == at_once


async def test_what_nobody_thought_of_costs_its_answer_and_tells_no_details(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def score(answer: Answer) -> Score:
        if answer.message.content == "odd":
            raise OSError("/secret/path")
        if answer.message.content == "refused":
            raise InvalidRequest("too odd")
        return Score(1.0)

    odd, refused, fine = await scored(OneByOne(score, at_once=1), "odd", "refused", "fine")
    assert error_of(odd).info.code == "engine_error"
    assert "secret" not in error_of(odd).message
    assert "/secret/path" in caplog.text
    assert error_of(refused).message == "too odd"
    assert fine == Score(1.0)
