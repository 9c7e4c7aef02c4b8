"""The Improvement API: loops are accepted, and told of. A runner runs them (`loop.py`)."""

from __future__ import annotations

import time

from ...bus.client import served_models
from ...schemas import (
    Conflict,
    Improvement,
    ImprovementReport,
    ImproveRequest,
    InvalidRequest,
    ModelNotFound,
)
from ..jobs.jobs import Jobs
from ..jobs.records import JobRecord
from ..training.settings import TrainingSettings
from .records import LoopRecords
from .reporting import Reporter
from .validation import check_request


class ImprovementActor(Improvement):
    """Accepts loops.

    Args:
        jobs: the jobs.
        records: the states of loops.
        settings: how trainers are configured.
        trainable: the models that can be trained.
    """

    service_name = "improvement"

    def __init__(
        self, jobs: Jobs, records: LoopRecords, settings: TrainingSettings, trainable: list[str]
    ) -> None:
        self._jobs = jobs
        self._records = records
        self._settings = settings
        self._trainable = trainable
        self._reporter = Reporter(jobs)

    async def start(self, request: ImproveRequest) -> None:
        """Start a loop; see `Improvement.start`."""
        # A request that was accepted is not judged again: what it names may be gone by now, and the job is there.
        if not await self._jobs.has(request):
            check_request(request, self._settings)
            await self._check_models(request)
        record = JobRecord(
            job=request.job_uuid,
            kind="improvement",
            digest="",
            model=request.model,
            algorithm=request.training.algorithm.value,
            scheduled_at=time.time(),
        )
        await self._jobs.submit(request, record)

    async def _check_models(self, request: ImproveRequest) -> None:
        """Refuse models that cannot be trained, or names that are taken, as far as that is known now."""
        if request.model not in self._trainable:
            raise ModelNotFound(
                f"model: {request.model!r} cannot be trained here; {', '.join(self._trainable) or 'none'} can",
                details={"model": request.model, "trainable": self._trainable},
            )
        served = await served_models(self._jobs.bus)
        for model in served:
            if model.version is None and request.name in (model.name, *model.aliases):
                raise Conflict(f"name: {request.name!r} is a model of the configuration")
        rewards = {
            name for one in served if one.kind == "reward" for name in (one.name, *one.aliases)
        }
        if rewards and request.reward_scoring.model not in rewards:
            raise ModelNotFound(
                f"reward_scoring.model: no reward model {request.reward_scoring.model!r} is served; "
                f"{', '.join(sorted(rewards))} are",
                details={"served": sorted(rewards)},
            )

    async def report(self, job_uuid: str) -> ImprovementReport:
        """Tell what a loop did so far; see `Improvement.report`.

        Raises:
            NotFound: there is no such job.
            InvalidRequest: it is no loop.
        """
        record = await self._jobs.record(job_uuid)
        if record.kind != "improvement":
            raise InvalidRequest(f"the job {job_uuid!r} is no loop: it is of kind {record.kind}")
        request = await self._jobs.request(record, ImproveRequest)
        return await self._reporter.report(record, request, await self._records.state(job_uuid))
