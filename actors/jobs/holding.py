"""A job in the hands of a runner: claimed, changed and told of by nobody else, and concluded or given back."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import anyio
from msgspec.structs import replace

from ...schemas import AylluError, JobEventKind, JobFailure, PostTrainingJobStatus
from ..patience import persistently
from .events import new_event
from .jobs import Change, Jobs, ended
from .records import JobRecord

log = logging.getLogger(__name__)

FOREVER = float("inf")
"""A runner bears with a bus that is away for as long as it takes: a trainer's child goes on meanwhile."""
TAIL_LINES = 50
"""How many of the last lines of its log a failure keeps."""
GIVE_BACK_SECONDS = 2.0
TRUST_SECONDS = 3.0
"""How long after its record said so a job is ours without a look: shorter than a lease."""
CANCELLED, CRASHED = "cancelled", "crashed"


class Fenced(Exception):  # noqa: N818 - it says what happened
    """Another runner has taken the job up: this one must let go of it."""


class Hold:
    """A job in the hands of one runner, for one attempt.

    Args:
        jobs: the jobs.
        job: its id.
        device: what it runs on, if that is anything in particular.
        attempts: how often in a row it may crash.
        tidies: whether a job that was cancelled while nobody ran it is begun all the same, to leave things in order.

    Attributes:
        record: the job as it was claimed; the current state is what `change` returns.
        tail: the last lines of its log.
    """

    def __init__(
        self, jobs: Jobs, job: str, device: str | None, attempts: int, *, tidies: bool = False
    ) -> None:
        self.jobs = jobs
        self.job = job
        self._device = device
        self.record: JobRecord | None = None
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._attempts = attempts
        self._tidies = tidies
        self._owner = uuid4().hex  # not even two holds of one process are one
        self._told = 0
        self._ours_at = float("-inf")

    async def attempt(self, work: Callable[[JobRecord], Awaitable[JobFailure | None]]) -> JobRecord:
        """Claim the job, work on it, and keep how that ended; cancelled, it goes back to the queue.

        Args:
            work: is given the job as it was claimed, and returns why it failed.

        Returns:
            the job as it then stands: ended, or crashed and to be tried again.

        Raises:
            Fenced: another runner has taken it up.
        """
        try:
            record = await self.claim()
            if record.ended:
                return record
            return await self.conclude(await work(record))
        except anyio.get_cancelled_exc_class():
            await self.give_back()
            raise

    async def claim(self) -> JobRecord:
        """Begin an attempt; a job that was cancelled, or crashed too often, ends instead.

        Returns:
            the job: running, or ended.
        """
        self.record = await persistently(
            lambda: self.jobs.change(self.job, self._claimed), patience=FOREVER
        )
        if not self.record.ended:
            again = "" if self.record.attempt == 1 else f", attempt {self.record.attempt}"
            where = f" on {self._device}" if self._device else ""
            await self._told_status(self.record, f"{self.job} runs{where}{again}")
        return self.record

    def _claimed(self, known: JobRecord) -> JobRecord:
        if known.ended or known.owner == self._owner:
            return known
        worn = known.crashes >= self._attempts
        if known.cancel and (worn or not self._tidies):
            return failed(known, JobFailure(CANCELLED, "it was cancelled"))
        if worn:
            last = known.failure or JobFailure(CRASHED, "its worker was lost")
            message = f"it crashed {known.crashes} times in a row, at last: {last.message}"
            return failed(known, JobFailure(CRASHED, message, last.log_tail))
        return replace(
            known,
            owner=self._owner,
            status=PostTrainingJobStatus.running,
            phase="preparing",
            started_at=known.started_at or time.time(),
            attempt=known.attempt + 1,
            # Taken back by its first checkpoint, and by whoever gives it back.
            crashes=known.crashes + 1,
            resources={"device": self._device} if self._device else {},
        )

    async def change(self, change: Change) -> JobRecord:
        """Change the job.

        Raises:
            Fenced: another runner has taken it up.
        """
        return await persistently(
            lambda: self.jobs.change(self.job, self._fenced(change)), patience=FOREVER
        )

    async def shall_end(self) -> bool:
        """Tell whether the job was cancelled.

        Raises:
            Fenced: another runner has taken it up.
            BusError: no answer.
        """
        return self._checked(await self.jobs.record(self.job)).cancel

    def _checked(self, known: JobRecord) -> JobRecord:
        if known.owner != self._owner:
            raise Fenced(f"{self.job} has another runner")
        self._ours_at = anyio.current_time()
        return known

    def _fenced(self, change: Change) -> Change:
        def fenced(known: JobRecord) -> JobRecord:
            return known if self._checked(known).ended else change(known)

        return fenced

    async def tell(self, kind: JobEventKind, **what: Any) -> None:
        """Store an event; see `new_event`. Its lines are part of the log.

        Raises:
            Fenced: another runner has taken the job up: this process was stopped, or its bus was away.
        """
        assert self.record is not None
        if anyio.current_time() > self._ours_at + TRUST_SECONDS:
            await persistently(self.shall_end, patience=FOREVER)
        self._told += 1
        self.tail.extend(what.get("lines", ()))
        event = new_event(self.record.attempt, kind, **what)
        msg_id = f"job:{self.job}:{self._owner}:{self._told}"
        await persistently(lambda: self.jobs.events.tell(self.job, event, msg_id), patience=FOREVER)

    async def conclude(self, failure: JobFailure | None) -> JobRecord:
        """Keep how the attempt ended; a crash is tried again, by whoever takes the job up next.

        Raises:
            Fenced: another runner has taken it up.
        """

        def concluded(known: JobRecord) -> JobRecord:
            if failure is None:
                done = ended(known, PostTrainingJobStatus.completed)
                return replace(done, crashes=0, failure=None)
            if failure.code != CRASHED:
                return failed(known, failure)
            if known.cancel:
                return failed(known, JobFailure(CANCELLED, "it was cancelled"))
            return replace(known, failure=failure)

        if failure is not None and failure.code == CRASHED:
            await self.tell(JobEventKind.log, lines=[f"this attempt failed: {failure.message}"])
        return await self.change(concluded)

    async def give_back(self) -> None:
        """Put the job back into the queue, where it was: this was no crash. Bounded, also where it is cancelled."""

        def given_back(known: JobRecord) -> JobRecord:
            return replace(
                known,
                status=PostTrainingJobStatus.scheduled,
                phase=None,
                crashes=max(0, known.crashes - 1),
            )

        with anyio.move_on_after(GIVE_BACK_SECONDS, shield=True):
            try:
                record = await self.jobs.change(self.job, self._fenced(given_back))
                if not record.ended:
                    await self.jobs.events.tell_status(record, f"{self.job} waits for its turn")
            except (AylluError, Fenced) as error:
                log.info("%s was not given back: %s", self.job, error)

    async def _told_status(self, record: JobRecord, line: str) -> None:
        await persistently(lambda: self.jobs.events.tell_status(record, line), patience=FOREVER)


def failed(record: JobRecord, failure: JobFailure) -> JobRecord:
    """Return a job that has failed now."""
    return replace(ended(record, PostTrainingJobStatus.failed), failure=failure)
