"""Task groups behind context managers: cancelled at the end, and invisible in errors."""

from __future__ import annotations

import anyio
import pytest

from ayllu.schemas import NotFound
from ayllu.schemas.tasks import background_tasks, first_of

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("background-tasks")]


async def test_tasks_end_with_the_block() -> None:
    ended = anyio.Event()

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    with anyio.fail_after(5):
        async with background_tasks() as tasks:
            tasks.start_soon(work)
            await anyio.lowlevel.checkpoint()
    assert ended.is_set()


async def test_the_error_of_the_block_comes_out_as_it_is() -> None:
    cause = ValueError("why")
    with pytest.raises(NotFound) as caught:
        async with background_tasks():
            raise NotFound("x") from cause
    assert caught.value.__cause__ is cause


async def test_two_errors_come_out_as_a_group() -> None:
    async def fail() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("in a task")

    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as caught:
        async with background_tasks() as tasks:
            tasks.start_soon(fail)
            await anyio.lowlevel.checkpoint()
            raise NotFound("in the block")
    assert {type(error) for error in caught.value.exceptions} == {ValueError, NotFound}


async def test_the_first_error_of_nested_groups() -> None:
    error = NotFound("it is not there")
    inner = ExceptionGroup("inner", [error, ValueError()])
    found: object = first_of(ExceptionGroup("outer", [inner]))
    assert found is error
