"""The SyntheticDataGeneration API: small batches at once, long runs in jobs."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator

from msgspec import to_builtins

from ...bus.client import client
from ...schemas import (
    AylluError,
    Conflict,
    Datasets,
    InvalidRequest,
    KScoredPromptGenerations,
    NotFound,
    SyntheticDataGeneration,
    SyntheticDataGenerationRequest,
    SyntheticDataGenerationResponse,
    SyntheticDataJobRequest,
    SyntheticDataJobs,
    SyntheticDataStatistics,
)
from ..jobs.records import JobRecord
from .generating import Generation
from .running import Plant
from .settings import resolve

log = logging.getLogger(__name__)

ASK_SECONDS = 5.0
"""How long the datasets actor has to tell of a dataset."""


class SyntheticDataActor(SyntheticDataGeneration, SyntheticDataJobs):
    """Generates data at once, and accepts jobs that do.

    Args:
        plant: what it is done with.
    """

    service_name = "synthetic-data"

    def __init__(self, plant: Plant) -> None:
        self._plant = plant

    async def generate(
        self, request: SyntheticDataGenerationRequest
    ) -> SyntheticDataGenerationResponse:
        """Generate, score and filter; see `SyntheticDataGeneration.generate`. Nothing is kept: a long run is a job."""
        resolved = resolve(request, self._plant.config)
        seed = resolved.seed if resolved.seed is not None else secrets.randbits(32)
        generation = Generation(self._plant.generator, resolved, seed)
        selection = await generation.run()
        return SyntheticDataGenerationResponse(
            selection.accepted, to_builtins(selection.statistics)
        )

    async def start(self, request: SyntheticDataJobRequest) -> None:
        """Start a job; see `SyntheticDataJobs.start`."""
        resolved = resolve(request.request, self._plant.config)
        if request.dataset is not None and request.dataset.form == "preference":
            _check_pairs(resolved.reward_scoring is not None)
        # The job may be there already, and its dataset too.
        if request.dataset is not None and not await self._plant.jobs.has(request):
            await self._check_new(request.dataset.uuid)
        record = JobRecord(
            job=request.job_uuid,
            kind="synthetic_data",
            digest="",
            model=resolved.model,
            reward_model=reward.model if (reward := resolved.reward_scoring) else None,
            scheduled_at=time.time(),
        )
        await self._plant.jobs.submit(request, record)

    async def _check_new(self, dataset: str) -> None:
        """Refuse a dataset that is there, before hours are spent on another one of its id."""
        known = client(Datasets, self._plant.generator.bus, timeout=ASK_SECONDS)
        try:
            await known.get(dataset)
        except NotFound:
            return
        except AylluError as error:
            if not error.retryable:
                raise
            log.info("whether there is a dataset %r already shows at the end: %s", dataset, error)
            return
        raise Conflict(f"dataset.uuid: there is a dataset {dataset!r} already")

    async def results(self, job_uuid: str) -> AsyncIterator[KScoredPromptGenerations]:
        """List what is accepted so far; see `SyntheticDataJobs.results`."""
        selection = await self._plant.selection(await self._record(job_uuid))
        for prompt in selection.accepted:
            yield prompt

    async def statistics(self, job_uuid: str) -> SyntheticDataStatistics:
        """Count what became of the candidates so far; see `SyntheticDataJobs.statistics`."""
        return (await self._plant.selection(await self._record(job_uuid))).statistics

    async def _record(self, job: str) -> JobRecord:
        record = await self._plant.jobs.record(job)
        if record.kind != "synthetic_data":
            raise InvalidRequest(f"the job {job!r} generates no data: it is of kind {record.kind}")
        return record


def _check_pairs(scored: bool) -> None:
    if not scored:
        raise InvalidRequest(
            "dataset.form: pairs of answers are made by their scores: name a reward model"
        )
