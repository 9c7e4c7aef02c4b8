"""Loops whose runner dies at each single operation on the bus, before it or after it: the next one ends as if nothing had been."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import anyio
import pytest
from msgspec.structs import replace as changed
from support.improvement import (
    Improving,
    Script,
    as_text,
    improve_request,
    running_improvement,
)

from ayllu.actors.improvement.loop import ATTEMPTS, Loop
from ayllu.actors.improvement.records import open_loop_records
from ayllu.actors.jobs.holding import Hold
from ayllu.actors.jobs.jobs import open_jobs
from ayllu.bus import local_bus
from ayllu.bus.bus import Bus
from ayllu.schemas import PostTrainingJobStatus

pytestmark = pytest.mark.asyncio
Status = PostTrainingJobStatus
SCRIPT = Script(rounds=(0.4, 0.3))


class Died(BaseException):
    """The process of the runner is no more."""


class Life:
    """The life of a process: it ends before its operation of a number, or after it; then nothing more is done.

    Attributes:
        operations: how many there were.
    """

    def __init__(self, ends_at: int | None = None, *, done: bool = False) -> None:
        self.operations = 0
        self._ends_at = ends_at
        self._done = done
        self._dead = False

    def begin(self) -> None:
        if self._dead:
            raise Died
        self.operations += 1
        if self.operations == self._ends_at and not self._done:
            self._dead = True
            raise Died

    def end(self, operation: int) -> None:
        if operation == self._ends_at:
            self._dead = True
        if self._dead:
            raise Died


class Mortal:
    """Something on the bus as a process sees it that may die: each call of it is an operation."""

    def __init__(self, target: Any, life: Life) -> None:
        self._target = target
        self._life = life

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return found if isinstance(found, int | str) else Mortal(found, self._life)
        if not inspect.iscoroutinefunction(found):

            def call(*args: Any, **kwargs: Any) -> Any:
                self._life.begin()
                return found(*args, **kwargs)

            return call

        async def operation(*args: Any, **kwargs: Any) -> Any:
            self._life.begin()
            number = self._life.operations
            result = await found(*args, **kwargs)
            self._life.end(number)
            return Mortal(result, self._life) if name in ("key_value", "objects") else result

        return operation


def mortal(bus: Bus, life: Life) -> Bus:
    """Return a bus as a process sees it that may die."""
    return replace(bus, calls=Mortal(bus.calls, life), storage=Mortal(bus.storage, life))  # type: ignore[arg-type]


async def run_loop(bus: Bus, life: Life) -> bool:
    """Run a loop as a process would that may die; tell whether it came to an end."""
    try:
        seen = mortal(bus, life)
        jobs = await open_jobs(seen)
        record = await Loop(jobs, await open_loop_records(seen), "loop").run()
        await jobs.settle(record)
    except BaseException as error:
        if not _is_death(error):
            raise
        return False
    return record.ended


def _is_death(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_death, error.exceptions))
    return isinstance(error, Died)


async def checked(improving: Improving, whole: str) -> None:
    """Check that a loop has ended as one does that nothing befell."""
    assert as_text(await improving.loops.report("loop")) == whole
    async for job in improving.told.list():
        if job.job_uuid != "loop":
            assert (job.status, job.attempt) == (Status.completed, 1)
    stages = improving.stages
    assert stages.registered == ["loop/round-1/training", "loop/round-2/training"]
    assert stages.served == "loop/round-1/training"


async def uninterrupted() -> tuple[str, int]:
    """Return the report of a loop that nothing befell, and how many operations that took."""
    async with local_bus() as bus, running_improvement(bus, SCRIPT, runners=0) as improving:
        await improving.loops.start(improve_request())
        life = Life()
        assert await run_loop(bus, life)
        report = await improving.loops.report("loop")
        assert [one.kept for one in report.rounds] == [True, False]
        return as_text(report), life.operations


@pytest.mark.slow
@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.requirement("improvement-resume")
async def test_a_loop_that_died_at_any_operation_goes_on_where_it_was(done: bool) -> None:
    with anyio.fail_after(110):
        whole, operations = await uninterrupted()
        assert operations > 50
        for number in range(1, operations + 1):
            async with local_bus() as bus, running_improvement(bus, SCRIPT, runners=0) as improving:
                await improving.loops.start(improve_request())
                if not await run_loop(bus, Life(number, done=done)):
                    assert await run_loop(bus, Life()), f"operation {number}"
                await checked(improving, whole)


@pytest.mark.requirement("improvement-resume")
async def test_a_loop_that_dies_after_each_step_still_ends() -> None:
    whole, _ = await uninterrupted()
    async with local_bus() as bus, running_improvement(bus, SCRIPT, runners=0) as improving:
        await improving.loops.start(improve_request())
        enough = 60  # It takes fewer to begin, and to do a step.
        for _ in range(100):
            if await run_loop(bus, Life(enough)):
                break
        await checked(improving, whole)


@pytest.mark.requirement("improvement-resume")
async def test_an_attempt_that_was_taken_over_keeps_nothing_more() -> None:
    async with local_bus() as bus, running_improvement(bus, SCRIPT, runners=0) as improving:
        await improving.loops.start(improve_request())
        jobs, records = await open_jobs(bus), await open_loop_records(bus)
        old, new = (Hold(jobs, "loop", None, 3) for _ in range(2))
        await old.claim()
        state = changed(await records.state("loop"), attempt=1)
        await records.keep("loop", state)
        await records.keep("loop", state)  # Again is no harm.
        await new.claim()
        await records.keep("loop", changed(state, attempt=2))
        with pytest.raises(Exception, match="another runner"):
            await records.keep("loop", state)


@pytest.mark.requirement("improvement-resume")
async def test_a_loop_that_dies_again_and_again_at_the_same_point_fails() -> None:
    async with local_bus() as bus, running_improvement(bus, SCRIPT, runners=0) as improving:
        await improving.loops.start(improve_request())
        early = 12  # It takes more to do a step.
        for _ in range(ATTEMPTS):
            assert not await run_loop(bus, Life(early))
        assert await run_loop(bus, Life())
        failure = (await improving.loops.report("loop")).failure
        assert failure is not None
        assert failure.code == "crashed"
        assert f"{ATTEMPTS} times" in failure.message
