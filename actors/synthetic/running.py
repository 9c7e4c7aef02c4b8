"""A job of synthetic data, by the runner that has its lease: candidates are generated, kept, and in the end made a dataset."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import anyio
import anyio.to_thread
from msgspec.structs import replace

from ...schemas import (
    AylluError,
    BusError,
    JobEventKind,
    JobFailure,
    JobProgress,
    PostTrainingJobStatus,
    SyntheticDataJobRequest,
)
from ...schemas.tasks import background_tasks
from ..jobs.holding import CANCELLED, CRASHED, FOREVER, Fenced, Hold
from ..jobs.jobs import Jobs
from ..jobs.records import JobRecord
from ..patience import persistently
from .candidates import JobCandidates, Place, Work, seconds_of
from .generating import Generation, Generator, with_seconds
from .selection import Selection, select
from .settings import Resolved, SyntheticDataConfig, resolve
from .writing import write_dataset

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often in a row a job may crash without a new candidate."""
LOOK_SECONDS = 2.0
"""How often it is looked whether a job was cancelled, should the signal of it be lost."""
TELL_SECONDS = 1.0
"""How often a job's progress is told."""


@dataclass(frozen=True, slots=True)
class Plant:
    """What jobs of synthetic data are run with.

    Attributes:
        jobs: the jobs.
        generator: generates.
        config: the defaults of requests.
        folder: where datasets are written; on storage that all workers share.
    """

    jobs: Jobs
    generator: Generator
    config: SyntheticDataConfig
    folder: Path

    async def resolved(self, record: JobRecord) -> tuple[SyntheticDataJobRequest, Resolved]:
        """Return what a job was asked to do, and what that meant when it was accepted, whatever the defaults are now."""
        asked = await self.jobs.request(record, SyntheticDataJobRequest)
        return asked, resolve(asked.request, SyntheticDataConfig(record.model, record.reward_model))

    async def selection(self, record: JobRecord) -> Selection:
        """Return what is accepted of a job's finished candidates, and what became of the others."""
        _, request = await self.resolved(record)
        work = await self.work(record.job)
        return await anyio.to_thread.run_sync(_selected, request, record, work)

    async def work(self, job: str) -> dict[Place, Work]:
        """Return a job's candidates so far."""
        work: dict[Place, Work] = {}
        await JobCandidates(self.generator.bus, job).load(work)
        return work


def seed_of(request: Resolved, record: JobRecord) -> int:
    """Return what makes the filters' choices repeatable: the request's seed, or one that stays with the job."""
    if request.seed is not None:
        return request.seed
    return int.from_bytes(sha256(f"{record.job}\n{record.digest}".encode()).digest()[:4], "big")


class DataRun:
    """An attempt of a job.

    Args:
        plant: what it is run with.
        job: its id.
    """

    def __init__(self, plant: Plant, job: str) -> None:
        self._plant = plant
        self._hold = Hold(plant.jobs, job, None, ATTEMPTS)
        self._look = anyio.Event()
        self._scope = anyio.CancelScope()
        self._fenced: Fenced | None = None
        self._cancelled = False
        self._told: JobProgress | None = None
        self._found = (0, 0)

    def look(self) -> None:
        """Look at once whether the job was cancelled."""
        self._look.set()

    async def run(self) -> JobRecord:
        """Run the job; returns it as it then stands: ended, or crashed and to be tried again.

        When cancelled, the job goes back to the queue, and goes on with the candidates that are not finished.

        Raises:
            Fenced: another runner has taken it up.
        """
        return await self._hold.attempt(self._made)

    async def _made(self, record: JobRecord) -> JobFailure | None:
        """Make the data, and return why that failed."""
        try:
            with self._scope:
                async with background_tasks() as tasks:
                    tasks.start_soon(self._watch)
                    await self._generated(record)
        except AylluError as error:
            # What may pass by itself is tried again, as a crash is.
            return JobFailure(CRASHED if error.retryable else error.code, error.message)
        except OSError as error:
            return JobFailure("storage", f"the dataset cannot be written: {error.strerror}")
        if self._fenced is not None:
            raise self._fenced
        if self._cancelled:
            return JobFailure(CANCELLED, "it was cancelled; what was finished is kept")
        return None

    async def _generated(self, record: JobRecord) -> None:
        plant = self._plant
        asked, request = await persistently(lambda: plant.resolved(record), patience=FOREVER)
        keeper = JobCandidates(plant.generator.bus, record.job)
        work = await persistently(lambda: plant.work(record.job), patience=FOREVER)
        seed = seed_of(request, record)
        generation = Generation(plant.generator, request, seed, keeper, work)
        self._found = _made_so_far(generation)
        await self._enter("generating")
        async with background_tasks() as tasks:
            tasks.start_soon(self._tell_progress, generation)
            selection = await generation.run()
        await self._progressed(generation)
        counts = selection.statistics
        line = f"{counts.accepted} of {counts.candidates} candidates are accepted"
        await self._hold.tell(JobEventKind.log, lines=[line])
        if asked.dataset is None:
            return
        await self._enter("writing the dataset")
        rows = await write_dataset(plant.generator.bus, plant.folder, asked, work, selection)
        told = f"the dataset {asked.dataset.uuid}: {rows} examples"
        if not rows:
            told = "no dataset is written: there is no example"
        await self._hold.tell(JobEventKind.log, lines=[told])

    async def _watch(self) -> None:
        """End the work of a job that was cancelled, or is another runner's by now."""
        while True:
            with anyio.move_on_after(LOOK_SECONDS):
                await self._look.wait()
            self._look = anyio.Event()
            try:
                if await self._hold.shall_end():
                    self._cancelled = True
            except BusError as error:
                log.debug("whether %s was cancelled cannot be told: %s", self._hold.job, error)
            except Fenced as error:
                self._fenced = error
            if self._cancelled or self._fenced:
                self._scope.cancel()
                return

    async def _tell_progress(self, generation: Generation) -> None:
        while True:
            await anyio.sleep(TELL_SECONDS)
            await self._progressed(generation)

    async def _progressed(self, generation: Generation) -> None:
        """Tell how far the job is, if that has changed."""
        counts = generation.counts
        figures = {"accepted": float(counts.accepted), "scored": float(counts.scored)}
        if counts.scored:
            figures["mean score"] = counts.total_score / counts.scored
        progress = JobProgress(counts.candidates, generation.total, "candidates", figures)
        if progress == self._told:
            return
        # What was found is no progress: an attempt that adds nothing to it may be one of many that crash in a row.
        changes = {"crashes": 0} if _made_so_far(generation) != self._found else {}
        line = f"{progress.done} of at most {progress.total} candidates, {counts.scored} scored"
        try:
            await self._hold.tell(JobEventKind.progress, lines=[line], progress=progress)
            await self._hold.change(lambda known: replace(known, progress=progress, **changes))
        except Fenced as error:
            self._fenced = error
            self._scope.cancel()
        else:
            self._told = progress

    async def _enter(self, phase: str) -> None:
        await self._hold.change(lambda known: replace(known, phase=phase))
        await self._hold.tell(
            JobEventKind.status, status=PostTrainingJobStatus.running, phase=phase
        )


def _made_so_far(generation: Generation) -> tuple[int, int]:
    return generation.counts.candidates, generation.counts.scored


def _selected(request: Resolved, record: JobRecord, work: dict[Place, Work]) -> Selection:
    groups = [group for one in work.values() if (group := one.finished()) is not None]
    selection = select(request, groups, seed=seed_of(request, record))
    return with_seconds(selection, seconds_of(work))
