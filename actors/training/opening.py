"""Everything that a training worker serves, opened: jobs, their workshop, trainers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...bus.bus import Bus
from ..datasets.content import ContentStore
from ..datasets.settings import DatasetsConfig
from ..jobs.jobs import open_jobs
from ..jobs.runner import Runner
from ..registry import ModelSpec
from .actor import PostTrainingActor, PostTrainingJobsActor
from .preparing import Workshop
from .settings import Trainables, TrainingSettings
from .trainer import new_trainer


@dataclass(frozen=True, slots=True)
class TrainingActors:
    """What a training worker runs.

    Attributes:
        training: accepts jobs.
        jobs: tells of them.
        trainers: run them, one a device.
    """

    training: PostTrainingActor
    jobs: PostTrainingJobsActor
    trainers: Sequence[Runner]


async def open_training(
    bus: Bus,
    folder: Path,
    settings: TrainingSettings,
    datasets: DatasetsConfig,
    models: Sequence[ModelSpec],
) -> TrainingActors:
    """Return what a training worker runs.

    Args:
        bus: the bus.
        folder: where jobs, weights and copies of datasets are kept; on storage that all training workers share.
        settings: the configuration of trainers.
        datasets: from where datasets may come.
        models: what the deployment serves.
    """
    jobs = await open_jobs(bus)
    workshop = Workshop(
        settings,
        Trainables(settings, models, folder / "weights"),
        ContentStore(folder / "content", datasets),
        folder / "jobs",
    )
    return TrainingActors(
        PostTrainingActor(jobs, workshop),
        PostTrainingJobsActor(jobs, workshop),
        [new_trainer(jobs, workshop, device) for device in settings.devices],
    )
