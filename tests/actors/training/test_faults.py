"""Trainers, children and nats-servers that are killed with -9, or stopped, in the middle of a job; real processes, a double trains."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from anyio.abc import Process
from support.jobs import Plan, Training, running_training, sft_request
from support.nats import kill
from support.processes import alive, descendants, running_support, wait_for

from ayllu.bus import connect
from ayllu.bus.server import embedded_server
from ayllu.schemas import JobEvent, PostTrainingJobStatus

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]
TESTS = Path(__file__).parents[2]
Status = PostTrainingJobStatus


async def eventually(what: str, condition: Callable[[], bool]) -> None:
    await anyio.to_thread.run_sync(wait_for, what, condition)


def trainer_process(url: str, folder: Path, plan: Plan) -> AbstractAsyncContextManager[Process]:
    """Run a trainer in a process of its own; yields when it is ready."""
    return running_support("trainer_process", url, str(folder), json.dumps(plan))


async def children(process: Process, count: int = 1) -> list[int]:
    """Return the processes that train below a trainer."""
    found: list[int] = []

    def there() -> bool:
        found[:] = [
            pid for pid, command in descendants(process.pid).items() if "scripted_child" in command
        ]
        return len(found) >= count

    await eventually("the child is there", there)
    return found


async def whole(training: Training, job: str, iterations: int) -> list[JobEvent]:
    """Check that a job has come to its end, whatever happened, and return its events."""
    status = await training.ended(job, seconds=60)
    assert (status.status, status.failure) == (Status.completed, None)
    losses = await training.losses(job)
    assert list(losses) == list(range(1, iterations + 1))
    for iteration, loss in losses.items():  # What an uninterrupted run tells.
        assert loss == pytest.approx(0.1 + 1 / iteration)
    assert status.checkpoints[-1].iters == iterations
    return await training.events(job)


@pytest.mark.requirement("job-resume", "job-process")
async def test_a_killed_trainer_loses_no_job(tmp_path: Path) -> None:
    plan = {"pace": 0.05}
    async with (
        embedded_server(tmp_path / "nats") as server,
        connect(server.url) as bus,
        running_training(bus, tmp_path, trainers=0) as training,
    ):
        async with trainer_process(server.url, tmp_path, plan) as process:
            await training.training.supervised_fine_tune(sft_request("a", iters=40))
            await training.until_iteration("a", 12)
            pids = await children(process)
            process.kill()
            # Its child does not outlive it.
            await eventually("the child is gone", lambda: not any(map(alive, pids)))
        async with trainer_process(server.url, tmp_path, plan):
            events = await whole(training, "a", 40)
        assert {event.attempt for event in events} == {0, 1, 2}


@pytest.mark.requirement("job-resume")
async def test_a_killed_child_loses_no_job(tmp_path: Path) -> None:
    async with (
        embedded_server(tmp_path / "nats") as server,
        connect(server.url) as bus,
        running_training(bus, tmp_path, trainers=0) as training,
        trainer_process(server.url, tmp_path, {"pace": 0.05}) as process,
    ):
        await training.training.supervised_fine_tune(sft_request("a", iters=30))
        for iteration in (
            6,
            14,
            22,
        ):  # Each time with a checkpoint between: these are not three in a row.
            await training.until_iteration("a", iteration)
            for pid in await children(process):
                os.kill(pid, signal.SIGKILL)
        events = await whole(training, "a", 30)
        failed = [line for event in events for line in event.lines if "signal 9" in line]
        assert len(failed) == 3


@pytest.mark.requirement("job-resume")
async def test_a_killed_nats_server_loses_no_job_and_interrupts_no_training(tmp_path: Path) -> None:
    data = tmp_path / "nats"
    async with embedded_server(data) as first, connect(first.url) as bus:
        async with (
            running_training(bus, tmp_path, trainers=0) as training,
            trainer_process(first.url, tmp_path, {"pace": 0.05}) as process,
        ):
            await training.training.supervised_fine_tune(sft_request("a", iters=150))
            await training.until_iteration("a", 10)
            (pid,) = await children(process)
            await kill(first)
            async with embedded_server(data, port=first.port):
                events = await whole(training, "a", 150)
            assert {event.attempt for event in events} == {0, 1}
            assert not alive(pid)


@pytest.mark.requirement("job-fenced", "job-resume")
async def test_a_stopped_trainer_is_replaced_and_writes_nothing_when_it_wakes_up(
    tmp_path: Path,
) -> None:
    async with (
        embedded_server(tmp_path / "nats") as server,
        connect(server.url) as bus,
        running_training(bus, tmp_path, trainers=0) as training,
        trainer_process(server.url, tmp_path, {"pace": 0.1}) as process,
    ):
        await training.training.supervised_fine_tune(sft_request("a", iters=60))
        await training.until_iteration("a", 6)
        (pid,) = await children(process)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            async with trainer_process(server.url, tmp_path, {"pace": 0.02}):
                # The child of the stopped one hears nothing of it any more, ends, and so frees the folder.
                events = await whole(training, "a", 60)
        finally:
            os.kill(process.pid, signal.SIGCONT)
        assert not alive(pid)
        assert {event.attempt for event in events} == {0, 1, 2}
        # The woken trainer finds that the job is another's, and goes on with the next one.
        await training.training.supervised_fine_tune(sft_request("b", iters=5))
        assert (await training.ended("b")).status == Status.completed
        assert len(await training.events("a")) == len(events)
