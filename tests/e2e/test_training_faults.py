"""Real training under `ayllu up`, of a tiny model: child, trainer and nats-server killed with -9, and the same losses in the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Iterator

import anyio
import anyio.to_thread
import pytest
from msgspec.structs import replace
from support.jobs import dataset_of, sft_request
from support.processes import Up, alive, descendants, running_up, wait_for
from support.training import dialogs, tiny_model

from ayllu.client import Stack, connect
from ayllu.runtime.job_commands import followed
from ayllu.schemas import Dataset, PostTrainingJobStatus, PostTrainingSFTRequest

pytestmark = [pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(300)]

ITERATIONS, KILLED_AT = 40, 10
VICTIMS = {"trainer": "worker datasets training", "bus": "nats-server"}
CHILD = "ayllu.actors.training.child"
DATA: Dataset = dataset_of(dialogs(24), messages="dialog")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("faults")
    weights = tiny_model(folder / "tiny")
    config = f"""
[[models]]
name = "echo"
engine = "scripted"
source = "echo"

[[training.models]]
name = "tiny"
weights = {str(weights)!r}
"""
    with running_up(folder / "data", config=config) as running:
        yield running
        assert running.stop() == 0


def request_of(job: str) -> PostTrainingSFTRequest:
    request = sft_request(job, iters=ITERATIONS, lr=1e-2, dataset=DATA, validation_dataset=DATA)
    training = replace(request.training_config, batch_size=4, checkpoint_every=4)
    return replace(request, training_config=training)


async def losses(
    stack: Stack, job: str, kill: Callable[[], Awaitable[None]] | None = None
) -> dict[int, float]:
    """Follow a job to its end over whatever breaks, and return its losses by iteration; in its middle, kill something."""
    found: dict[int, float] = {}
    with anyio.fail_after(120):
        async for event in followed(stack, job):
            if event.metrics is not None and event.metrics.loss is not None:
                found[event.metrics.iteration] = event.metrics.loss
                if kill is not None and event.metrics.iteration == KILLED_AT:
                    await kill()
                    kill = None
        status = await stack.post_training.job.status(job)
    assert kill is None
    assert status.failure is None
    assert status.status is PostTrainingJobStatus.completed
    return found


@pytest.fixture(scope="module")
def uninterrupted(up: Up) -> dict[int, float]:
    async def run() -> dict[int, float]:
        async with connect(up.url) as stack:
            await stack.post_training.supervised_fine_tune(request_of("quiet"))
            return await losses(stack, "quiet")

    found = anyio.run(run)
    assert list(found) == list(range(1, ITERATIONS + 1))
    return found


@pytest.mark.parametrize("victim", ["child", *VICTIMS])
@pytest.mark.requirement("training-faults", "job-resume")
async def test_whatever_is_killed_the_losses_are_those_of_a_quiet_run(
    victim: str, up: Up, uninterrupted: dict[int, float]
) -> None:
    children: list[int] = []

    async def kill() -> None:
        children.extend(p for p, cmd in descendants(up.process.pid).items() if CHILD in cmd)
        assert children
        if victim == "child":
            for pid in children:
                os.kill(pid, signal.SIGKILL)
        else:
            await anyio.to_thread.run_sync(up.kill_child, VICTIMS[victim])

    async with connect(up.url) as stack:
        await stack.post_training.supervised_fine_tune(request_of(victim))
        found = await losses(stack, victim, kill)
    assert sorted(found) == sorted(uninterrupted)
    for iteration, loss in found.items():
        assert loss == pytest.approx(uninterrupted[iteration], rel=1e-4, abs=1e-5)
    gone = f"the children of {victim}"
    await anyio.to_thread.run_sync(wait_for, gone, lambda: not any(map(alive, children)))
