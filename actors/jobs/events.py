"""The events of jobs: written by whoever runs one, and followed from the beginning, or from anywhere, to the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime

import msgspec
from msgspec.structs import replace

from ...bus.bus import Bus
from ...schemas import (
    BusError,
    Checkpoint,
    JobEvent,
    JobEventKind,
    JobMetrics,
    JobProgress,
    PostTrainingJobStatus,
    encode,
)
from .records import FINAL, JOB_EVENTS, JobRecord, event_subject

MAX_LINE = 4000
"""Characters of a line of the log; what is longer is cut, and says so."""

_read_event = msgspec.json.Decoder(JobEvent).decode


class JobEvents:
    """The events of all jobs."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def tell(self, job: str, event: JobEvent, msg_id: str) -> None:
        """Store an event.

        Args:
            job: where it happened.
            event: what; its index is what the bus gives it.
            msg_id: the same for each try.

        Raises:
            BusError: no answer; try again under the same id.
        """
        await self._bus.storage.streams.append(event_subject(job), encode(event), msg_id=msg_id)

    async def tell_status(self, record: JobRecord, line: str) -> None:
        """Store where a job stands now; once, however often it is told of the same attempt."""
        event = new_event(
            record.attempt,
            JobEventKind.status,
            lines=[line],
            status=record.status,
            phase=record.phase,
        )
        msg_id = f"job:{record.job}:{record.attempt}:{record.status.value}"
        # The end is told last, and once, even where the id is too old for the bus to know it.
        if record.ended and await self.told_end(record):
            return
        await self.tell(record.job, event, msg_id)

    async def told_end(self, record: JobRecord) -> bool:
        """Return whether the end of a job was told."""
        last = await self._bus.storage.streams.last(JOB_EVENTS.name, event_subject(record.job))
        return last is not None and _event_of(last.payload, 0).status in FINAL

    async def follow(self, record: JobRecord, after: int = 0) -> AsyncGenerator[JobEvent, None]:
        """Yield the events of a job after an index, to its end."""
        subject = event_subject(record.job)
        streams = self._bus.storage.streams
        if record.ended:
            last = await streams.last(JOB_EVENTS.name, subject)
            if last is None or last.sequence <= after:
                return  # All of it was read, or is too old to be there.
        async with streams.read(JOB_EVENTS.name, subject, after=after) as entries:
            async for entry in entries:
                event = _event_of(entry.payload, entry.sequence)
                yield event
                if event.status in FINAL:
                    return

    async def standing(self, record: JobRecord, after: int = 0) -> AsyncGenerator[JobEvent, None]:
        """Yield the events of a job after an index that are there now."""
        replay = self._bus.storage.streams.replay
        async with replay(JOB_EVENTS.name, event_subject(record.job), after=after) as entries:
            async for entry in entries:
                yield _event_of(entry.payload, entry.sequence)


def new_event(
    attempt: int,
    kind: JobEventKind,
    *,
    lines: Sequence[str] = (),
    metrics: JobMetrics | None = None,
    checkpoint: Checkpoint | None = None,
    status: PostTrainingJobStatus | None = None,
    phase: str | None = None,
    trial: str | None = None,
    progress: JobProgress | None = None,
) -> JobEvent:
    """Return something that happens now."""
    return JobEvent(
        index=0,
        at=datetime.now(UTC),
        attempt=attempt,
        kind=kind,
        lines=[line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]}... (cut)" for line in lines],
        metrics=metrics,
        checkpoint=checkpoint,
        status=status,
        phase=phase,
        trial=trial,
        progress=progress,
    )


def _event_of(payload: bytes, index: int) -> JobEvent:
    try:
        return replace(_read_event(payload), index=index)
    except msgspec.DecodeError as error:
        raise BusError(f"a job has an event that is none: {error}", retryable=False) from error
