"""A stage of a loop while it runs: its job, followed to its end, over absences of its actor and of the bus."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import anyio
from msgspec.structs import replace

from ...bus.client import client
from ...schemas import (
    AylluError,
    BusError,
    JobEvent,
    JobFailure,
    PostTrainingJobs,
    PostTrainingJobStatus,
    PostTrainingJobStatusResponse,
)
from ...schemas.tasks import background_tasks
from ..jobs.holding import CANCELLED, FOREVER, Fenced, Hold
from ..jobs.records import FINAL
from ..patience import persistently

LOOK_SECONDS = 2.0
"""How often it is looked whether a loop was cancelled, should the signal of it be lost."""
STOP_SECONDS = 60.0
"""How long a cancelled stage may take to end, before the loop ends without it."""
STAGE_FAILED = "stage_failed"


class LoopEnds(Exception):  # noqa: N818 - it says what happened
    """The loop cannot go on, or shall not.

    Attributes:
        failure: why.
    """

    def __init__(self, failure: JobFailure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Follower:
    """Follows the stages of one loop.

    Args:
        hold: the loop's job.
    """

    def __init__(self, hold: Hold) -> None:
        self._hold = hold
        self._told = client(PostTrainingJobs, hold.jobs.bus)
        self._look = anyio.Event()
        self._since = datetime.now(UTC)
        self._went_on = False

    def look(self) -> None:
        """Look at once whether the loop was cancelled."""
        self._look.set()

    async def check_cancelled(self) -> None:
        """End the loop if it was cancelled.

        Raises:
            LoopEnds: it was.
        """
        if await persistently(self._hold.shall_end, patience=FOREVER):
            raise LoopEnds(JobFailure(CANCELLED, "it was cancelled"))

    async def ended(self, stage: str) -> PostTrainingJobStatusResponse:
        """Return the status of a stage's job once it has completed.

        Raises:
            LoopEnds: it has failed, or the loop was cancelled.
            Fenced: another runner has taken the loop up.
        """
        try:
            async with background_tasks() as tasks:
                tasks.start_soon(self._watch, stage)
                status = await self._followed(stage)
        except ExceptionGroup as group:
            raise _first_of(group) from None
        if status.status is PostTrainingJobStatus.completed:
            return status
        await self.check_cancelled()
        failure = status.failure or JobFailure("unknown", "it does not say why")
        message = f"{stage} failed: {failure.code}: {failure.message}"
        raise LoopEnds(JobFailure(STAGE_FAILED, message, failure.log_tail))

    async def cancel(self, stage: str) -> None:
        """End a stage's job."""
        await persistently(partial(self._told.cancel, stage))

    async def _followed(self, stage: str) -> PostTrainingJobStatusResponse:
        after = 0

        async def follow() -> PostTrainingJobStatusResponse:
            nonlocal after
            async for event in self._told.events(stage, after):
                after = event.index
                await self._heard(event)
            status = await self._told.status(stage)
            if status.status not in FINAL:
                raise BusError(f"the events of {stage} ended before it did")
            return status

        return await persistently(follow, patience=FOREVER)

    async def _heard(self, event: JobEvent) -> None:
        """Note that a stage goes on while this attempt follows it: crashes before and after that are not in a row."""
        if not self._went_on and event.at > self._since:
            self._went_on = True
            await self._hold.change(lambda known: replace(known, crashes=0))

    async def _watch(self, stage: str) -> None:
        """End a stage whose loop was cancelled, and the loop too, if the stage does not end in time."""
        while not await persistently(self._hold.shall_end, patience=FOREVER):
            with anyio.move_on_after(LOOK_SECONDS):
                await self._look.wait()
            self._look = anyio.Event()
        await self.cancel(stage)
        await anyio.sleep(STOP_SECONDS)
        raise LoopEnds(JobFailure(CANCELLED, f"it was cancelled; {stage} has not ended yet"))


def _first_of(group: ExceptionGroup[Exception]) -> Exception:
    """Return what counts of what follower and watcher found out at once; what neither expects stays as it is."""
    known, unknown = group.split((Fenced, LoopEnds, AylluError))
    if known is None or unknown is not None:
        return group
    return min(known.exceptions, key=lambda error: not isinstance(error, Fenced))
