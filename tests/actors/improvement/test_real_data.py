"""A loop over the real actors of data and datasets: only its model, its reward model, training and registry are doubles."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from support.improvement import (
    NAME,
    DoubleRegistry,
    DoubleRun,
    DoubleStages,
    DoubleTraining,
    Script,
    improve_request,
)
from support.synthetic import running_generation

from ayllu.actors.engines.engine import Generation, Prompt
from ayllu.actors.engines.scripted import ScriptedEngine, Step
from ayllu.actors.improvement.opening import open_improvement
from ayllu.actors.inference import InferenceActor
from ayllu.actors.jobs.records import JobRecord
from ayllu.actors.jobs.runner import Runner
from ayllu.actors.training.settings import TrainableModel, TrainingSettings
from ayllu.bus import local_bus
from ayllu.bus.client import client
from ayllu.bus.service import serve
from ayllu.schemas import (
    Improvement,
    ImprovementGeneration,
    PostTrainingJobStatus,
    PostTrainingSFTRequest,
    RewardScoringConfig,
)
from ayllu.schemas.tasks import background_tasks

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("improvement-loop")]


def learned(prompt: Prompt, _: Generation) -> list[Step]:
    """Answer as the double of an improved model does: always well."""
    return [f"{prompt.messages[-1].text} 90"]


async def test_data_is_generated_scored_filtered_written_and_trained_on(tmp_path: Path) -> None:
    request = improve_request(
        model="scripted",
        reward_scoring=RewardScoringConfig("double", 0.1),
        generation=ImprovementGeneration(num_candidates=4, k=2),
    )
    settings = TrainingSettings(models=[TrainableModel("scripted", str(tmp_path))])
    async with (
        local_bus() as bus,
        running_generation(bus, tmp_path) as plant,
        ScriptedEngine(learned) as better,
        background_tasks() as tasks,
    ):
        stages = DoubleStages(plant.jobs, Script())

        async def run_of(record: JobRecord) -> DoubleRun:
            return DoubleRun(stages, record.job)

        actor, runner = await open_improvement(bus, tmp_path, settings, [])
        for one in (actor, DoubleTraining(stages), DoubleRegistry(stages)):
            await tasks.start(serve, bus, one)
        await tasks.start(Runner(plant.jobs, "job", "double", run_of).run)
        await tasks.start(runner.run)
        await client(Improvement, bus).start(replace(request, rounds=1, seed=0))
        # The registry's double serves nothing: this is what it would.
        await tasks.start(serve, bus, InferenceActor(better, name=NAME))
        status = await plant.ended("loop")
        assert (status.status, status.failure) == (PostTrainingJobStatus.completed, None)

        report = await client(Improvement, bus).report("loop")
        # The likeliest answer has no seed, and so the score 0 by the double.
        assert report.baseline is not None
        assert (report.baseline.mean, report.baseline.answers) == (0.0, 10)
        (first,) = report.rounds
        counts = first.statistics
        assert counts is not None
        assert counts.candidates == 8
        assert 0 < counts.accepted <= 4
        assert counts.before.count == 8
        assert first.evaluation is not None
        assert first.evaluation.mean == pytest.approx(0.9)
        assert first.kept
        assert first.gain == pytest.approx(0.9)
        # What was trained on is what was accepted, as it was then.
        record = await plant.jobs.record("loop/round-1/training")
        trained = await plant.jobs.request(record, PostTrainingSFTRequest)
        assert trained.dataset == await plant.datasets.get("loop/round-1")
        assert trained.dataset.fingerprint is not None
        assert trained.dataset == trained.validation_dataset
        infos = [info async for info in plant.datasets.list()]
        assert [(info.uuid, info.rows) for info in infos] == [("loop/round-1", counts.accepted)]
