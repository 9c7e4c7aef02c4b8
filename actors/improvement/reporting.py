"""The report of a loop: what is kept of it, and what its stages' jobs tell."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from ...bus.client import client
from ...schemas import (
    Evaluation,
    ImprovementReport,
    ImprovementRound,
    ImproveRequest,
    LossPoint,
    NotFound,
    SyntheticDataJobs,
    SyntheticDataStatistics,
)
from ..jobs.jobs import Jobs
from ..jobs.records import JobRecord
from .evaluation import scores_of
from .plan import data_job, evaluation_job, training_job
from .state import LoopState, Round, best_of

STAGES = ("generating", "training", "registering", "evaluating")
MOST_POINTS = 1000
"""How many points of a round's training losses are told; of more, evenly some."""


class Reporter:
    """Makes the reports of loops.

    Args:
        jobs: the jobs.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._data = client(SyntheticDataJobs, jobs.bus)

    async def report(
        self, record: JobRecord, request: ImproveRequest, state: LoopState
    ) -> ImprovementReport:
        """Return the report of a loop as it stands."""
        best = best_of(request, state)
        return ImprovementReport(
            job_uuid=record.job,
            status=record.status,
            model=request.model,
            name=request.name,
            reward_model=request.reward_scoring.model,
            rounds=[await self._round(request, one) for one in state.rounds],
            baseline=await self._evaluation(request, state.baseline),
            helped=await self._evaluation(request, state.helped),
            best=best.model if best else None,
            best_evaluation=best.evaluation if best else None,
            failure=record.failure if record.ended else None,
        )

    async def _round(self, request: ImproveRequest, kept: Round) -> ImprovementRound:
        data, training, evaluation = (
            make(request.job_uuid, kept.number) for make in (data_job, training_job, evaluation_job)
        )
        stages = {"generating": data, "training": training, "evaluating": evaluation}
        found = {name: await self._record(job) for name, job in stages.items()}
        took = kept.seconds | _durations(found)
        return ImprovementRound(
            number=kept.number,
            generator=kept.generator,
            data_job=data,
            statistics=await self._statistics(data) if found["generating"] else None,
            training_job=training if found["training"] else None,
            losses=await self._losses(found["training"]),
            version=kept.version,
            evaluation=await self._evaluation(request, kept.evaluation),
            gain=kept.gain,
            kept=kept.kept,
            note=kept.note,
            seconds={name: took[name] for name in STAGES if name in took},
        )

    async def _record(self, job: str) -> JobRecord | None:
        try:
            return await self._jobs.record(job)
        except NotFound:
            return None

    async def _statistics(self, job: str) -> SyntheticDataStatistics | None:
        try:
            return await self._data.statistics(job)
        except NotFound:
            return None

    async def _losses(self, record: JobRecord | None) -> list[LossPoint]:
        """Return the losses of a training job, as the last attempt that made each told them."""
        if record is None:
            return []
        points: dict[int, LossPoint] = {}
        async for event in self._jobs.events.standing(record):
            if event.metrics is None:
                continue
            iteration, told = event.metrics.iteration, event.metrics
            point = points.get(iteration, LossPoint(iteration))
            if told.loss is not None:
                point = replace(point, loss=told.loss)
            if told.validation_loss is not None:
                point = replace(point, validation_loss=told.validation_loss)
            points[iteration] = point
        return _thinned([points[iteration] for iteration in sorted(points)])

    async def _evaluation(
        self, request: ImproveRequest, evaluation: Evaluation | None
    ) -> Evaluation | None:
        """Return an evaluation with the score of each prompt, as far as its job still has them."""
        if evaluation is None:
            return None
        try:
            results = [result async for result in self._data.results(evaluation.job_uuid)]
        except NotFound:
            return evaluation
        found = scores_of(results, len(request.held_out_prompts.prompts))
        means = [sum(scores) / len(scores) if scores else None for scores in found]
        return replace(evaluation, scores=means)


def _durations(stages: Mapping[str, JobRecord | None]) -> dict[str, float]:
    """Return what those jobs took so far that have begun."""
    return {
        name: (record.completed_at or time.time()) - record.started_at
        for name, record in stages.items()
        if record is not None and record.started_at is not None
    }


def _thinned(points: Sequence[LossPoint]) -> list[LossPoint]:
    """Return points that are few enough: all validations, and evenly some of the rest."""
    step = -(-len(points) // MOST_POINTS)
    return [
        point
        for number, point in enumerate(points)
        if not step or number % step == 0 or point.validation_loss is not None
    ]
