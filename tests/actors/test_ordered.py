"""Jobs at once, results in order."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

from ayllu.actors.ordered import as_told, in_order
from ayllu.schemas import EngineError

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("batch-in-order")]


class Jobs:
    """Jobs that wait at gates; counts how many run."""

    def __init__(self, count: int) -> None:
        self.gates = [anyio.Event() for _ in range(count)]
        self.started: list[int] = []
        self.running = 0
        self.most = 0

    def job(self, number: int) -> Callable[[], Coroutine[Any, Any, int]]:
        async def run() -> int:
            self.started.append(number)
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await self.gates[number].wait()
            finally:
                self.running -= 1
            return number

        return run

    def all(self) -> list[Callable[[], Coroutine[Any, Any, int]]]:
        return [self.job(number) for number in range(len(self.gates))]


async def test_results_come_in_order_though_jobs_end_otherwise() -> None:
    jobs = Jobs(6)
    found: list[int] = []

    async def read() -> None:
        found.extend([result async for result in in_order(jobs.all(), at_once=3, ahead=6)])

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            for gate in reversed(jobs.gates):
                gate.set()
                await anyio.wait_all_tasks_blocked()
    assert found == list(range(6))
    assert jobs.most == 3


async def test_no_jobs_no_results() -> None:
    async for _ in in_order(Jobs(0).all(), at_once=1, ahead=1):
        pytest.fail("there was no job")


async def test_a_slow_reader_bounds_what_is_begun() -> None:
    jobs = Jobs(10)
    for gate in jobs.gates:
        gate.set()
    results = in_order(jobs.all(), at_once=2, ahead=4)
    with anyio.fail_after(5):
        assert await anext(results) == 0
        await anyio.wait_all_tasks_blocked()
        assert len(jobs.started) == 5
        await results.aclose()


async def test_closing_from_another_task_ends_all_jobs() -> None:
    jobs = Jobs(4)
    jobs.gates[0].set()
    results = in_order(jobs.all(), at_once=3, ahead=4)
    with anyio.fail_after(5):
        assert await anext(results) == 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(results.aclose)
    assert jobs.running == 0


async def test_cancelling_the_reader_ends_all_jobs() -> None:
    jobs = Jobs(4)
    with anyio.move_on_after(0.01) as scope:
        async for _ in in_order(jobs.all(), at_once=3, ahead=4):
            pass
    assert scope.cancelled_caught
    assert jobs.running == 0
    assert jobs.most == 3


async def test_an_error_comes_at_its_turn_and_ends_the_others() -> None:
    jobs = Jobs(3)
    jobs.gates[0].set()

    async def fail() -> int:
        raise EngineError("no")

    results = in_order([jobs.job(0), fail, fail, jobs.job(1)], at_once=4, ahead=4)
    with anyio.fail_after(5):
        assert await anext(results) == 0
        with pytest.raises(EngineError):
            await anext(results)
    assert jobs.running == 0


async def test_what_work_tells_comes_at_once_and_its_error_at_the_end() -> None:
    gate = anyio.Event()

    async def work(tell: Callable[[int], None]) -> None:
        tell(1)
        await gate.wait()
        tell(2)
        raise EngineError("no")

    told = as_told(work)
    with anyio.fail_after(10):
        assert await anext(told) == 1
        gate.set()
        assert await anext(told) == 2
        with pytest.raises(EngineError):
            await anext(told)


async def test_closing_ends_work_that_tells() -> None:
    ended = anyio.Event()

    async def work(tell: Callable[[int], None]) -> None:
        try:
            tell(1)
            await anyio.sleep_forever()
        finally:
            ended.set()

    told = as_told(work)
    with anyio.fail_after(10):
        assert await anext(told) == 1
        await told.aclose()
    assert ended.is_set()
