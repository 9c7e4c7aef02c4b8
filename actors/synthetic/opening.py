"""Everything that a worker needs to generate data, opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anyio

from ...bus.bus import Bus
from ..jobs.jobs import open_jobs
from ..jobs.records import JobRecord
from ..jobs.runner import Run, Runner
from .actor import SyntheticDataActor
from .candidates import DATA
from .generating import Generator
from .running import DataRun, Plant
from .settings import SyntheticDataConfig

JOBS_AT_ONCE = 2
"""How many jobs of a worker run at once; they share its limit of answers that are asked for."""


async def open_synthetic_data(
    bus: Bus, folder: Path, config: SyntheticDataConfig
) -> tuple[SyntheticDataActor, Sequence[Runner]]:
    """Return the actor, and what runs its jobs.

    Args:
        bus: the bus.
        folder: where datasets are written; the datasets actor may read below it.
        config: the defaults of requests.
    """
    await bus.storage.streams.ensure(DATA)
    plant = Plant(
        await open_jobs(bus), Generator(bus, anyio.CapacityLimiter(config.at_once)), config, folder
    )

    async def run_of(record: JobRecord) -> Run:
        return DataRun(plant, record.job)

    runners = [Runner(plant.jobs, "data", "data", run_of) for _ in range(JOBS_AT_ONCE)]
    return SyntheticDataActor(plant), runners
