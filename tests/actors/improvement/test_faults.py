"""Runners of loops that are killed with -9 at random points, and a bus that is: real processes, doubles play the stages."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random

import anyio
import pytest
from anyio.abc import Process
from support.improvement import (
    Gate,
    Improving,
    Script,
    as_text,
    improve_request,
    running_improvement,
)
from support.nats import kill
from support.processes import running_support

from ayllu.bus import connect, local_bus
from ayllu.bus.server import embedded_server
from ayllu.schemas import PostTrainingJobStatus

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.slow,
    pytest.mark.requirement("improvement-resume"),
]
TESTS = Path(__file__).parents[2]
Status = PostTrainingJobStatus
SCRIPT = Script(rounds=(0.4, 0.3, 0.6))
ROUNDS = 3


def runner_process(url: str) -> AbstractAsyncContextManager[Process]:
    """Run a runner of loops in a process of its own; yields when it is ready."""
    return running_support("improvement_process", url)


async def uninterrupted() -> str:
    async with local_bus() as bus, running_improvement(bus, SCRIPT) as improving:
        await improving.loops.start(improve_request(rounds=ROUNDS))
        return as_text(await improving.ended())


async def after_events(improving: Improving, count: int, after: int) -> int:
    """Wait for some more events of the loop, or its end; return the index of the last one."""
    with anyio.fail_after(40):
        async for event in improving.told.events("loop", after):
            after, count = event.index, count - 1
            if not count:
                break
    return after


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_runner_that_is_killed_at_random_loses_nothing(seed: int, tmp_path: Path) -> None:
    random, after = Random(seed), 0
    async with (
        embedded_server(tmp_path / "nats") as server,
        connect(server.url) as bus,
        running_improvement(bus, SCRIPT, runners=0) as improving,
    ):
        await improving.loops.start(improve_request(rounds=ROUNDS))
        for _ in range(3):
            async with runner_process(server.url) as process:
                after = await after_events(improving, random.randint(1, 12), after)
                process.kill()
                await process.wait()
        async with runner_process(server.url):
            report = await improving.ended(seconds=60)
        assert as_text(report) == await uninterrupted()
        stages = [job async for job in improving.told.list() if job.job_uuid != "loop"]
        assert {(job.status, job.attempt) for job in stages} == {(Status.completed, 1)}
        registered = improving.stages.registered
        assert registered == [f"loop/round-{number}/training" for number in range(1, ROUNDS + 1)]
        assert improving.stages.served == "loop/round-3/training"


async def test_a_bus_that_is_killed_is_waited_for(tmp_path: Path) -> None:
    data, gate = tmp_path / "nats", Gate()
    script = Script(rounds=SCRIPT.rounds, gates={"loop/round-1/training": gate})
    async with embedded_server(data) as first, connect(first.url) as bus:
        async with running_improvement(bus, script) as improving:
            await improving.loops.start(improve_request(rounds=ROUNDS))
            with anyio.fail_after(20):
                await gate.reached.wait()
            await kill(first)
            async with embedded_server(data, port=first.port):
                gate.opened.set()
                assert as_text(await improving.ended(seconds=60)) == await uninterrupted()
