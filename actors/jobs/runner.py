"""Runners: each runs the first job of its queue that nobody else works on, one after the other.

What keeps a job from two runners is its lease; what keeps what they write apart, should a lease be lost, is the owner in the
job's record. A job leaves the queue when it has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol
from uuid import uuid4

import anyio
from anyio.abc import TaskStatus

from ...bus.durable import KeyValue
from ...bus.transport import Message
from ...schemas import AylluError, BusError, NotFound
from ...schemas.tasks import background_tasks
from ..leases import Lease, lease_bucket, take_lease
from ..patience import persistently
from .holding import FOREVER, Fenced
from .jobs import Jobs
from .records import LEASE_BUCKET, SIGNALS, JobRecord, Queue

log = logging.getLogger(__name__)

IDLE_SECONDS = 2.0
"""How often an idle runner looks at the queue: for jobs whose runner was lost, of which no signal tells."""
PAUSE_SECONDS = 0.5
"""Between two attempts of a job that crashes."""


class Run(Protocol):
    """What a runner does for a job: an attempt of it."""

    async def run(self) -> JobRecord:
        """Run until the job has ended, or shall be tried again."""
        ...

    def look(self) -> None:
        """Look at once whether the job was cancelled."""
        ...


class Runner:
    """Runs the jobs of a queue, one at a time.

    Args:
        jobs: the jobs.
        queue: which of them.
        name: what its leases are called by.
        run_of: returns what is done for a job.
    """

    def __init__(
        self,
        jobs: Jobs,
        queue: Queue,
        name: str,
        run_of: Callable[[JobRecord], Awaitable[Run]],
    ) -> None:
        self.name = f"{name}-{uuid4().hex[:12]}"
        self._jobs = jobs
        self._queue = queue
        self._run_of = run_of
        self._look = anyio.Event()
        self._lease: Lease | None = None
        self._running: Run | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled; started means ready. The job that runs then goes back to the queue."""
        leases = await lease_bucket(self._jobs.bus, LEASE_BUCKET)
        async with self._jobs.bus.transport.subscribe(SIGNALS, self._on_signal):
            task_status.started()
            while True:
                self._look = anyio.Event()
                try:
                    if await self._run_first(leases):
                        continue
                except AylluError as error:
                    log.warning("the queue of jobs is looked at later: %s", error)
                with anyio.move_on_after(IDLE_SECONDS):
                    await self._look.wait()

    def _on_signal(self, _: Message) -> None:
        self._look.set()
        if self._running is not None:
            self._running.look()

    async def _run_first(self, leases: KeyValue) -> bool:
        """Run the first job that nobody else works on; tell whether there was one."""
        for job in await self._jobs.queue(self._queue):
            self._lease = await take_lease(leases, job, self.name)
            if self._lease is not None:
                await self._run(job, leases)
                return True
        return False

    async def _run(self, job: str, leases: KeyValue) -> None:
        try:
            async with background_tasks() as tasks:
                tasks.start_soon(self._keep, job, leases)
                await self._run_to_end(job)
        except NotFound as error:
            log.error("a job is in the queue that is not there: %s", error)
            await self._jobs.forget(self._queue, job)
        except Fenced as error:
            log.warning("%s", error)
        finally:
            if self._lease is not None:
                await self._lease.release()

    async def _keep(self, job: str, leases: KeyValue) -> None:
        """Keep the lease; one that ran out while the bus was away is taken again, unless another runner was faster."""
        while True:
            if self._lease is not None:
                await self._lease.keep()
                log.warning("the lease on %s was lost", job)
            try:
                self._lease = await take_lease(leases, job, self.name)
            except BusError:
                self._lease = None
            if self._lease is None:
                # If it is another runner's by now, what we write of the job is fenced off.
                await anyio.sleep(PAUSE_SECONDS)

    async def _run_to_end(self, job: str) -> None:
        while True:
            record = await persistently(lambda: self._jobs.record(job), patience=FOREVER)
            if not record.ended:
                self._running = run = await self._run_of(record)
                try:
                    record = await run.run()
                finally:
                    self._running = None
            if record.ended:
                break
            await anyio.sleep(PAUSE_SECONDS)
        await persistently(lambda: self._jobs.settle(record), patience=FOREVER)
        log.info("%s: %s", job, record.status.value)
