"""Jobs whose training is played by `scripted_child.py`, a double: what is tested is the queue, not the learning."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio
from msgspec.structs import replace

from ayllu.actors.datasets.content import ContentStore
from ayllu.actors.datasets.settings import DatasetsConfig
from ayllu.actors.jobs.jobs import Jobs, open_jobs
from ayllu.actors.training.actor import PostTrainingActor, PostTrainingJobsActor
from ayllu.actors.training.preparing import Workshop
from ayllu.actors.training.protocol import RunSpec
from ayllu.actors.training.settings import TrainableModel, Trainables, TrainingSettings
from ayllu.actors.training.trainer import new_trainer
from ayllu.bus.bus import Bus
from ayllu.schemas import (
    Dataset,
    DatasetColumnType,
    FinetuningAlgorithm,
    HyperparameterSearch,
    JobEvent,
    LoggerConfig,
    LoraFinetuningConfig,
    OptimizerConfig,
    OptimizerType,
    PostTrainingJobStatusResponse,
    PostTrainingSFTRequest,
    TrainingConfig,
)
from ayllu.schemas.tasks import background_tasks

SCRIPT = Path(__file__).with_name("scripted_child.py")
ROWS = [{"prompt": f"{n}?", "completion": f"{n}!"} for n in range(8)]

Plan = Mapping[str, Any]


def local_path(url: str) -> Path:
    """Return the path that a ``file://`` URL stands for."""
    assert url.startswith("file:///")
    return Path(unquote(urlsplit(url).path))


def dataset_of(rows: Sequence[Mapping[str, Any]] = ROWS, **columns: str) -> Dataset:
    """Return rows as a dataset that needs no file."""
    types = columns or dict.fromkeys(rows[0], "text")
    text = "\n".join(json.dumps(row) for row in rows)
    return Dataset(
        {name: DatasetColumnType(type_) for name, type_ in types.items()},
        f"data:application/jsonl,{text.replace('%', '%25')}",
    )


def sft_request(job: str, **changes: Any) -> PostTrainingSFTRequest:
    """Return a request; ``iters`` and ``lr`` are short for what stands in its sections."""
    lr, iters = changes.pop("lr", 0.02), changes.pop("iters", 10)
    request = PostTrainingSFTRequest(
        job_uuid=job,
        model="tiny",
        dataset=dataset_of(),
        validation_dataset=dataset_of(ROWS[:2]),
        algorithm=FinetuningAlgorithm.lora,
        algorithm_config=LoraFinetuningConfig(["q_proj", "v_proj"], False, False, 4, 8),
        optimizer_config=OptimizerConfig(OptimizerType.adamw, lr, 0.0, 0.0),
        training_config=TrainingConfig(
            n_epochs=0,
            batch_size=2,
            shuffle=True,
            n_iters=iters,
            enable_activation_checkpointing=False,
            memory_efficient_fsdp_wrap=False,
            fsdp_cpu_offload=False,
        ),
        hyperparam_search_config=HyperparameterSearch(),
        logger_config=LoggerConfig(),
    )
    return replace(request, **changes)


def scripted(plan: Plan) -> Any:
    """Return what starts the double with a plan."""

    def command(_: RunSpec, folder: Path) -> list[str]:
        return [sys.executable, str(SCRIPT), str(folder), json.dumps(plan)]

    return command


def workshop(folder: Path, plan: Plan, *, roots: Sequence[str] = (), **settings: Any) -> Workshop:
    """Return where jobs are run by the double; its model is a folder that is never read."""
    weights = folder / "tiny"
    weights.mkdir(parents=True, exist_ok=True)
    (weights / "config.json").write_text("{}")
    chosen = TrainingSettings(models=[TrainableModel("tiny", str(weights))], **settings)
    return Workshop(
        chosen,
        Trainables(chosen, [], folder / "weights"),
        ContentStore(folder / "content", DatasetsConfig(roots=list(roots))),
        folder / "jobs",
        scripted(plan),
    )


@dataclass(frozen=True, slots=True)
class Training:
    """The actors of a training worker in the test's own process.

    Attributes:
        jobs: the jobs.
        training: accepts them.
        told: tells of them.
        place: where they are run.
    """

    jobs: Jobs
    training: PostTrainingActor
    told: PostTrainingJobsActor
    place: Workshop

    async def ended(self, job: str, seconds: float = 30.0) -> PostTrainingJobStatusResponse:
        """Follow a job to its end, and return its status."""
        with anyio.fail_after(seconds):
            async for _ in self.told.events(job):
                pass
            return await self.told.status(job)

    async def until(self, job: str, phase: str, seconds: float = 30.0) -> None:
        """Wait until a job is in a phase."""
        with anyio.fail_after(seconds):
            async for event in self.told.events(job):
                if event.phase == phase:
                    return
        raise AssertionError(f"{job} ended before it was {phase}")

    async def until_iteration(self, job: str, iteration: int, seconds: float = 30.0) -> JobEvent:
        """Wait until a job has told of an iteration."""
        with anyio.fail_after(seconds):
            async for event in self.told.events(job):
                if event.metrics is not None and event.metrics.iteration >= iteration:
                    return event
        raise AssertionError(f"{job} ended before iteration {iteration}")

    async def until_trial(self, trial: str, iteration: int) -> None:
        """Wait until a trial of a search has begun, and has told of an iteration."""
        with anyio.fail_after(30):
            async for event in self.told.events(trial.partition("/")[0]):
                if event.trial == trial:
                    break
        await self.until_iteration(trial, iteration)

    async def events(self, job: str) -> list[JobEvent]:
        """Return the events of a job that are there."""
        return [event async for event in self.told.events(job, follow=False)]

    async def losses(self, job: str) -> dict[int, float]:
        """Return the losses of a job by iteration, as the last attempt that made each told them."""
        return {
            event.metrics.iteration: event.metrics.loss
            for event in await self.events(job)
            if event.metrics is not None and event.metrics.loss is not None
        }


@asynccontextmanager
async def running_training(
    bus: Bus, folder: Path, plan: Plan | None = None, *, trainers: int = 1, **settings: Any
) -> AsyncIterator[Training]:
    """Run the actors and some trainers in this process, whose jobs the double trains."""
    jobs = await open_jobs(bus)
    place = workshop(folder, plan or {}, **settings)
    async with background_tasks() as tasks:
        for _ in range(trainers):
            await tasks.start(new_trainer(jobs, place, "cpu").run)
        yield Training(
            jobs, PostTrainingActor(jobs, place), PostTrainingJobsActor(jobs, place), place
        )
