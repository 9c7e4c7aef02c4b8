"""Everything that a worker needs for loops, opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...bus.bus import Bus
from ..jobs.jobs import open_jobs
from ..jobs.runner import Runner
from ..registry import ModelSpec
from ..training.settings import Trainables, TrainingSettings
from .actor import ImprovementActor
from .loop import loop_runner
from .records import open_loop_records


async def open_improvement(
    bus: Bus, folder: Path, settings: TrainingSettings, models: Sequence[ModelSpec]
) -> tuple[ImprovementActor, Runner]:
    """Return the actor, and what runs its loops, one after the other.

    Args:
        bus: the bus.
        folder: that of training workers, which have the weights of models there.
        settings: the configuration of trainers.
        models: what the deployment serves.
    """
    jobs, records = await open_jobs(bus), await open_loop_records(bus)
    trainable = Trainables(settings, models, folder / "weights").names
    return ImprovementActor(jobs, records, settings, trainable), loop_runner(jobs, records)
