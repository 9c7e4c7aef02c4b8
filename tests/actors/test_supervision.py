"""Supervision: what crashes is started again, ever more slowly."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.abc import TaskStatus

from ayllu.actors.engines.scripted import ScriptedEngine, script_from
from ayllu.actors.inference import InferenceActor
from ayllu.actors.supervision import Backoff, Start, supervise
from ayllu.bus import client, local_bus, serve
from ayllu.schemas import AylluError, CompletionRequest, EngineDead, Inference

QUICK = Backoff(first=0.001, most=0.002)


class Runs:
    """Something to supervise, that crashes as often as it is told."""

    def __init__(self, crashes: int, *, ready: bool = True) -> None:
        self.crashes = crashes
        self.ready = ready
        self.starts = 0
        self.steady = anyio.Event()

    async def __call__(self, *, task_status: TaskStatus[None]) -> None:
        self.starts += 1
        if self.ready:
            task_status.started()
        if self.starts <= self.crashes:
            raise RuntimeError("crashed")
        self.steady.set()
        await anyio.sleep_forever()


@pytest.mark.asyncio
@pytest.mark.requirement("supervision")
async def test_what_crashes_is_started_again() -> None:
    runs = Runs(3)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            await tasks.start(_supervise, runs)
            await runs.steady.wait()
            tasks.cancel_scope.cancel()
    assert runs.starts == 4


@pytest.mark.asyncio
async def test_what_never_was_ready_is_not_started_again() -> None:
    runs = Runs(1, ready=False)
    with anyio.fail_after(5), pytest.raises(ExceptionGroup) as raised:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_supervise_quietly, runs)
    assert raised.group_contains(RuntimeError)
    assert runs.starts == 1


@pytest.mark.asyncio
async def test_what_ends_by_itself_has_crashed() -> None:
    starts = 0
    steady = anyio.Event()

    async def ends(*, task_status: TaskStatus[None]) -> None:
        nonlocal starts
        starts += 1
        task_status.started()
        if starts == 2:
            steady.set()
            await anyio.sleep_forever()

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            await tasks.start(_supervise, ends)
            await steady.wait()
            tasks.cancel_scope.cancel()


@pytest.mark.asyncio
@pytest.mark.requirement("supervision")
async def test_an_engine_that_dies_is_replaced_and_its_callers_may_retry() -> None:
    engines: list[ScriptedEngine] = []
    request = CompletionRequest(model="m", content="one two")

    async def start(*, task_status: TaskStatus[Any]) -> None:
        # The first engine waits for ever; the one that replaces it answers.
        engine = ScriptedEngine(script_from("echo" if engines else "stall:1"))
        engines.append(engine)
        async with engine:
            await serve(bus, InferenceActor(engine, name="m"), task_status=task_status)

    with anyio.fail_after(10):
        async with local_bus() as bus, anyio.create_task_group() as tasks:
            await tasks.start(_supervise, start)
            stream = client(Inference, bus).stream_completion(request)
            await anext(stream)
            engines[0].die()
            with pytest.raises(EngineDead) as dead:
                await anext(stream)
            assert dead.value.retryable
            answer = ""
            while not answer:
                try:
                    answer = str((await client(Inference, bus).completion(request)).content)
                except AylluError as error:
                    assert error.retryable
            assert answer.split() == ["one", "two"]
            tasks.cancel_scope.cancel()
    assert len(engines) == 2


def test_waits_double_up_to_a_limit() -> None:
    backoff = Backoff(first=0.1, most=10.0)
    assert [backoff.wait(crashes) for crashes in (1, 2, 3)] == pytest.approx([0.1, 0.2, 0.4])
    assert backoff.wait(1000) == 10.0


async def _supervise(start: Start, *, task_status: TaskStatus[None]) -> None:
    await supervise("test", start, backoff=QUICK, task_status=task_status)


async def _supervise_quietly(start: Runs) -> None:
    await supervise("test", start, backoff=QUICK)
