"""The PostTraining API: jobs are accepted, followed and ended. Trainers run them (`trainer.py`)."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from pathlib import Path

import anyio.to_thread
from msgspec.structs import replace

from ...schemas import (
    InvalidRequest,
    JobEvent,
    JobFailure,
    JobFile,
    JobTrial,
    NotFound,
    PostTraining,
    PostTrainingJobArtifactsResponse,
    PostTrainingJobLogStream,
    PostTrainingJobs,
    PostTrainingJobStatus,
    PostTrainingJobStatusResponse,
    PostTrainingRewardRequest,
    PostTrainingRLHFRequest,
    PostTrainingSFTRequest,
)
from ..jobs.holding import CANCELLED, failed
from ..jobs.jobs import Jobs
from ..jobs.records import QUEUES, JobRecord, TrainingRequest
from .checkpoints import RESUME, checkpoints_in, read_manifest
from .preparing import Workshop
from .protocol import CHECKPOINTS, TENSORBOARD
from .settings import require_packages
from .validation import check_request, is_search, method_of

MAX_LISTED = 1000


class PostTrainingActor(PostTraining):
    """Accepts jobs.

    Args:
        jobs: the jobs.
        workshop: where they are run.
    """

    service_name = "post-training"

    def __init__(self, jobs: Jobs, workshop: Workshop) -> None:
        self._jobs = jobs
        self._workshop = workshop

    async def supervised_fine_tune(self, request: PostTrainingSFTRequest) -> None:
        """Start a job of supervised fine-tuning; see `PostTraining.supervised_fine_tune`."""
        await self._accept(request, request.model, request.algorithm.value)

    async def preference_optimize(self, request: PostTrainingRLHFRequest) -> None:
        """Start a job of preference optimisation; see `PostTraining.preference_optimize`."""
        await self._accept(request, request.finetuned_model, request.algorithm.value)

    async def reward_model(self, request: PostTrainingRewardRequest) -> None:
        """Start a job that trains a reward model; see `PostTraining.reward_model`."""
        await self._accept(request, request.model, request.algorithm.value)

    async def _accept(self, request: TrainingRequest, model: str, algorithm: str) -> None:
        # A request that was accepted is not judged again: what it names may be gone by now, and the job is there.
        if not await self._jobs.has(request):
            await anyio.to_thread.run_sync(_check, request, self._workshop)
        record = JobRecord(
            job=request.job_uuid,
            kind=method_of(request),
            digest="",
            model=model,
            algorithm=algorithm,
            scheduled_at=time.time(),
        )
        await self._jobs.submit(request, record)


def _check(request: TrainingRequest, workshop: Workshop) -> None:
    require_packages(*(["optuna"] if is_search(request.hyperparam_search_config) else []))
    check_request(request, workshop.content, workshop.settings)
    workshop.base_of(request)


class PostTrainingJobsActor(PostTrainingJobs):
    """Tells of jobs, and ends them.

    Args:
        jobs: the jobs.
        workshop: where they are run.
    """

    service_name = "post-training-jobs"

    def __init__(self, jobs: Jobs, workshop: Workshop) -> None:
        self._jobs = jobs
        self._workshop = workshop

    async def logs(self, job_uuid: str) -> AsyncGenerator[PostTrainingJobLogStream, None]:
        """Follow the log of a job; see `PostTrainingJobs.logs`."""
        async with aclosing(self.events(job_uuid)) as events:
            async for event in events:
                if event.lines:
                    yield PostTrainingJobLogStream(job_uuid, event.lines)

    async def events(
        self, job_uuid: str, after: int = 0, follow: bool = True
    ) -> AsyncGenerator[JobEvent, None]:
        """Follow the events of a job; see `PostTrainingJobs.events`."""
        if after < 0:
            raise InvalidRequest("after is an index of an event, or 0")
        record = await self._jobs.record(job_uuid)
        events = self._jobs.events
        found = events.follow(record, after) if follow else events.standing(record, after)
        async with aclosing(found):
            async for event in found:
                yield event

    async def status(self, job_uuid: str) -> PostTrainingJobStatusResponse:
        """Tell where a job stands; see `PostTrainingJobs.status`."""
        record = await self._jobs.record(job_uuid)
        position = None
        if record.status is PostTrainingJobStatus.scheduled:
            queue = await self._jobs.queue(record.queue)
            position = queue.index(job_uuid) if job_uuid in queue else None
        return await self._described(record, position)

    async def list(self, limit: int = 100) -> AsyncIterator[PostTrainingJobStatusResponse]:
        """List jobs; see `PostTrainingJobs.list`."""
        if not 1 <= limit <= MAX_LISTED:
            raise InvalidRequest(f"limit is from 1 to {MAX_LISTED}")
        queued = [
            (position, job)
            for queue in QUEUES
            for position, job in enumerate(await self._jobs.queue(queue))
        ]
        for position, job in queued[:limit]:
            record = await self._jobs.record(job)
            waits = record.status is PostTrainingJobStatus.scheduled
            yield await self._described(record, position if waits else None)
        waiting = {job for _, job in queued}
        others = [
            await self._jobs.record(job) for job in await self._jobs.ids() if job not in waiting
        ]
        others.sort(key=lambda record: record.completed_at or record.scheduled_at, reverse=True)
        for record in others[: max(0, limit - len(queued))]:
            yield await self._described(record, None)

    async def _described(
        self, record: JobRecord, position: int | None
    ) -> PostTrainingJobStatusResponse:
        trials = []
        for trial in record.trials:
            known = await self._jobs.record(trial.job)
            trials.append(
                JobTrial(
                    job_uuid=trial.job,
                    parameters=trial.parameters,
                    status=known.status,
                    validation_loss=known.validation_loss,
                    best=trial.job == record.best,
                )
            )
        return PostTrainingJobStatusResponse(
            job_uuid=record.job,
            status=record.status,
            scheduled_at=_time(record.scheduled_at),
            started_at=_time(record.started_at),
            completed_at=_time(record.completed_at),
            progress=record.progress,
            resources_allocated=dict(record.resources) or None,
            checkpoints=record.checkpoints,
            kind=record.kind,
            model=record.model,
            algorithm=record.algorithm,
            phase=record.phase,
            position=position,
            attempt=record.attempt,
            metrics=record.metrics,
            dataset_fingerprint=record.dataset,
            validation_fingerprint=record.validation,
            trials=trials,
            failure=record.failure if record.ended else None,
        )

    async def cancel(self, job_uuid: str) -> None:
        """Stop a job; see `PostTrainingJobs.cancel`. One that has ended stays as it is."""

        def cancelled(known: JobRecord) -> JobRecord:
            if known.ended:
                return known
            begun = known.parent is not None or known.stage is not None
            if known.status is PostTrainingJobStatus.scheduled and not begun:
                return failed(known, JobFailure(CANCELLED, "it was cancelled before it began"))
            return replace(known, cancel=True)

        record = await self._jobs.change(job_uuid, cancelled)
        if record.ended:
            await self._jobs.settle(record)
        elif record.trials:
            await self.cancel(record.trials[-1].job)
        elif record.stage is not None:
            with suppress(
                NotFound
            ):  # The loop is just about to start it, and will see that it shall not.
                await self.cancel(record.stage)
        await self._jobs.signal(job_uuid)

    async def artifacts(self, job_uuid: str) -> PostTrainingJobArtifactsResponse:
        """List what a job produced; see `PostTrainingJobs.artifacts`."""
        record = await self._jobs.record(job_uuid)
        maker = record.best or record.job  # What a search made, its best trial made.
        folder = self._workshop.job_folder(maker)
        files = await anyio.to_thread.run_sync(_files_in, folder)
        tensorboard = folder / TENSORBOARD
        return PostTrainingJobArtifactsResponse(
            job_uuid=record.job,
            checkpoints=record.checkpoints,
            files=files,
            tensorboard=tensorboard.resolve().as_uri() if tensorboard.is_dir() else None,
            metrics=record.metrics,
        )


def _files_in(folder: Path) -> list[JobFile]:
    """Return the files of the checkpoints in a job's folder, but for what is private to it."""
    found = []
    for _, checkpoint in checkpoints_in(folder / CHECKPOINTS):
        for file in read_manifest(checkpoint).files:
            if not file.name.startswith(f"{RESUME}/"):
                path = checkpoint / file.name
                name = f"{checkpoint.name}/{file.name}"
                found.append(JobFile(name, path.resolve().as_uri(), file.bytes, file.sha256))
    return found


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
