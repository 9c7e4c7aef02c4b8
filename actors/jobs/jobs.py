"""Jobs on the bus: accepted, kept, changed, queued."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from msgspec.structs import replace

from ...bus.bus import Bus
from ...bus.durable import KeyValue, Objects
from ...schemas import (
    BusError,
    Cancelled,
    Conflict,
    JobEnded,
    NotFound,
    PostTrainingJobStatus,
    decode,
    encode,
)
from ..events import ensure_events, event_subject
from .events import JobEvents
from .records import (
    JOB_BUCKET,
    JOB_EVENTS,
    QUEUES,
    REQUEST_BUCKET,
    JobRecord,
    JobRequest,
    Queue,
    job_of_queue,
    queue_stream,
    queue_subject,
    signal_subject,
)

CHANGES = 100
"""How often a change is tried while others change the same job."""

Change = Callable[[JobRecord], JobRecord]
T = TypeVar("T", bound=JobRequest)


class Jobs:
    """The jobs of a deployment. Opened by `open_jobs`.

    Attributes:
        bus: the bus.
        events: what happens in them.
    """

    def __init__(self, bus: Bus, records: KeyValue, requests: Objects) -> None:
        self.bus = bus
        self.events = JobEvents(bus)
        self._records = records
        self._requests = requests

    async def submit(self, request: JobRequest, record: JobRecord) -> JobRecord:
        """Accept a job; it is kept, whatever dies, once this has returned.

        Returns:
            the job, which may be an earlier one with the same request.

        Raises:
            Conflict: there is a job of this id with another request.
            Overloaded: the queue is full.
            BusError: no answer; the same request again is the same job.
        """
        made = await self.keep(request, record)
        if made.ended:
            return made
        subject = queue_subject(made.queue, made.job)
        streams = self.bus.storage.streams
        if await streams.last(queue_stream(made.queue).name, subject) is None:
            await self.events.tell_status(made, f"{made.job} waits for its turn")
            await streams.append(
                subject, b"", msg_id=f"queue:{made.job}:{made.digest}", expected_last=0
            )
        await self.signal(made.job)
        return made

    async def keep(self, request: JobRequest, record: JobRecord) -> JobRecord:
        """Keep a job without queueing it; see `submit`."""
        payload = encode(request)
        digest = digest_of(request)
        record = replace(record, digest=digest)
        await self._requests.put(f"{record.job}\n{digest}", payload)
        try:
            await self._records.create(record.job, encode(record))
        except Conflict:
            known = await self.record(record.job)
            if known.digest != digest:
                await self._requests.delete(f"{record.job}\n{digest}")
            # Requests of several kinds have the same fields.
            if (known.kind, known.digest) != (record.kind, digest):
                raise Conflict(
                    f"there is a job {record.job!r} already, with another request"
                ) from None
            return known
        return record

    async def has(self, request: JobRequest) -> bool:
        """Tell whether there is a job already with this very request."""
        entry = await self._records.get(request.job_uuid)
        return entry is not None and decode(entry.value, JobRecord).digest == digest_of(request)

    async def record(self, job: str) -> JobRecord:
        """Return a job.

        Raises:
            NotFound: there is none of this id.
        """
        entry = await self._records.get(job)
        if entry is None:
            raise NotFound(f"there is no job {job!r}")
        return decode(entry.value, JobRecord)

    async def request(self, record: JobRecord, type_: type[T]) -> T:
        """Return what a job was asked to do, as the type that requests of its kind have."""
        return decode(await self._requests.get(f"{record.job}\n{record.digest}"), type_)

    async def change(self, job: str, change: Change) -> JobRecord:
        """Change a job as it stands now; what ``change`` raises leaves it as it is.

        Raises:
            NotFound: there is none of this id.
            BusError: no answer; whether it was changed is not known.
        """
        for _ in range(CHANGES):
            entry = await self._records.get(job)
            if entry is None:
                raise NotFound(f"there is no job {job!r}")
            known = decode(entry.value, JobRecord)
            changed = change(known)
            if changed == known:
                return known
            try:
                await self._records.update(job, encode(changed), revision=entry.revision)
            except Conflict:
                continue
            return changed
        raise BusError(f"the job {job!r} is changed by too many")

    async def queue(self, queue: Queue) -> list[str]:
        """Return the jobs of a queue that have not ended, in the order in which they came."""
        async with self.bus.storage.streams.replay(queue_stream(queue).name) as entries:
            return [job_of_queue(entry.subject) async for entry in entries]

    async def ids(self) -> list[str]:
        """Return the ids of all jobs, sorted."""
        return await self._records.keys()

    async def settle(self, record: JobRecord) -> None:
        """Tell of the end of a job whose record says that it has ended, and take it out of the queue."""
        failure = record.failure
        text = f"{record.job} {record.status.value}"
        if not await self.events.told_end(record):
            await self._publish_end(record)
        await self.events.tell_status(
            record, text + (f": {failure.code}: {failure.message}" if failure else "")
        )
        await self.forget(record.queue, record.job)

    async def _publish_end(self, record: JobRecord) -> None:
        """Let programs and triggers know of the end of a job: before its own events end, so that a worker that dies meanwhile
        does not keep it from them.
        """
        failure = record.failure
        cancelled = failure is not None and failure.code == Cancelled.code
        event = JobEnded(
            job=record.job,
            kind=record.kind,
            status="cancelled" if cancelled else record.status.value,
            ended_at=datetime.fromtimestamp(record.completed_at or time.time(), UTC),
            error=f"{failure.code}: {failure.message}" if failure else "",
        )
        subject = event_subject("job", record.kind, event.status)
        msg_id = f"ended {record.job}:{record.digest}"
        await self.bus.storage.streams.append(subject, encode(event), msg_id=msg_id)

    async def forget(self, queue: Queue, job: str) -> None:
        """Take a job out of its queue."""
        await self.bus.storage.streams.purge(queue_stream(queue).name, queue_subject(queue, job))

    async def signal(self, job: str) -> None:
        """Let runners look at a job at once; they come by themselves, if later."""
        await self.bus.transport.publish(signal_subject(job), b"")


async def open_jobs(bus: Bus) -> Jobs:
    """Return the jobs of a deployment; what keeps them is made where it is missing."""
    for spec in (*map(queue_stream, QUEUES), JOB_EVENTS):
        await bus.storage.streams.ensure(spec)
    await ensure_events(bus)
    records = await bus.storage.key_value(JOB_BUCKET)
    return Jobs(bus, records, await bus.storage.objects(REQUEST_BUCKET))


def digest_of(request: JobRequest) -> str:
    """Return what tells one request from another."""
    return hashlib.sha256(encode(request)).hexdigest()


def ended(record: JobRecord, status: PostTrainingJobStatus) -> JobRecord:
    """Return a job that has ended now."""
    return replace(record, status=status, phase=None, completed_at=time.time())
