"""Who generates, who answers and who scores, killed with -9 at random points: the data are those of a quiet run."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from support.processes import support_process
from support.synthetic import job_of, running_generation

from ayllu.bus import connect, local_bus
from ayllu.bus.processes import stop_process
from ayllu.bus.server import embedded_server
from ayllu.schemas import (
    KScoredPromptGenerations,
    PostTrainingJobStatus,
    SyntheticDataJobRequest,
    SyntheticDataset,
    SyntheticDataStatistics,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]
TESTS = Path(__file__).parents[2]
ROLES = ("model", "rewards", "data")
PROMPTS = [f"prompt {number}" for number in range(30)]
Made = tuple[list[KScoredPromptGenerations], SyntheticDataStatistics, str]


@asynccontextmanager
async def processes(url: str, folder: Path) -> AsyncIterator[dict[str, Process]]:
    """Run one process of each role; yields them when they are ready. They may be killed, and `start`ed anew."""
    running: dict[str, Process] = {}
    try:
        async with anyio.create_task_group() as starting:
            for role in ROLES:
                starting.start_soon(start, running, role, url, folder)
        yield running
    finally:
        for process in running.values():
            await stop_process(process, patience=5)


async def start(running: dict[str, Process], role: str, url: str, folder: Path) -> None:
    running[role] = await support_process("data_process", url, str(folder), role, seconds=30)


async def quiet(folder: Path, job: SyntheticDataJobRequest) -> Made:
    """Return what a job makes that nothing disturbs."""
    async with local_bus() as bus, running_generation(bus, folder) as plant:
        await plant.data.start(job)
        assert (await plant.ended("a")).status is PostTrainingJobStatus.completed
        return await plant.results("a"), await plant.data.statistics("a"), _written(folder)


def _written(folder: Path) -> str:
    (file,) = (folder / "synthetic").glob("*.jsonl")
    return file.read_text()


@pytest.mark.requirement("synthetic-resume")
@pytest.mark.parametrize("seed", range(2))
async def test_no_candidate_is_lost_or_counted_twice(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    job = job_of(
        "a", PROMPTS, target=100, max_similarity=1.0, k=2, dataset=SyntheticDataset("made")
    )
    expected, counts, text = await quiet(tmp_path / "quiet", job)
    folder = tmp_path / "killed"
    async with (
        embedded_server(folder / "nats") as server,
        connect(server.url) as bus,
        running_generation(bus, folder, workers=0) as plant,
        processes(server.url, folder) as running,
    ):
        await plant.data.start(job)
        # Each role dies once, in some order, after some of the candidates.
        for number, role in enumerate(chance.sample(ROLES, 3)):
            await plant.until("a", 20 + 60 * number + chance.randrange(40), seconds=60)
            running[role].kill()
            with anyio.fail_after(5):
                await running[role].wait()
            await start(running, role, server.url, folder)
        status = await plant.ended("a", seconds=90)
        assert (status.status, status.failure) == (PostTrainingJobStatus.completed, None)
        assert await plant.results("a") == expected
        found = await plant.data.statistics("a")
        assert found.seconds > 0
        for field in counts.__struct_fields__:
            if field != "seconds":
                assert getattr(found, field) == getattr(counts, field), field
        assert _written(folder) == text
