"""Runners: they take groups that have something to do, and do it. While a group waits for humans, nobody holds anything:
its wake-up comes again when the wait is over, and another one when somebody has spoken.

A runner holds the group's lease while it works for it, so that two do not do the same; what keeps what they write apart is the
journal, in which nobody writes who does not know all of it.
"""

from __future__ import annotations

import logging
import time
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup, TaskStatus

from ...bus.bus import Bus
from ...bus.context import current_call
from ...bus.deadletters import bury
from ...bus.durable import Delivery, KeyValue, WorkQueue
from ...schemas import AylluError, BusError
from ...schemas.tasks import first_of
from ..leases import Lease, lease_bucket, take_lease
from ..wakeups import RETRY_SECONDS, fetched
from .deciding import Done, Wait
from .records import LEASE_BUCKET, WAKE, ensure_streams, group_of_wake
from .register import open_register
from .turns import GroupTurns
from .work import Work

log = logging.getLogger(__name__)

CONSUMER = "group_runners"
SLOTS = 256
BUSY_SECONDS = 1.0
"""When a wake-up comes again for a group that another runner works for."""
ACK_WAIT = 5.0
"""After how long without a word a wake-up goes to another runner, in seconds."""
KEEP_SECONDS = 1.5
LONGEST_WAIT = 3600.0
"""After how long somebody looks at a group that waits, at the latest."""


class Runner:
    """Lets the agents of groups speak.

    Args:
        bus: the bus.
        slots: for how many groups it works at once.
    """

    def __init__(self, bus: Bus, *, slots: int = SLOTS) -> None:
        self.name = uuid4().hex[:12]
        self._bus = bus
        self._turns = GroupTurns(bus)
        self._free = anyio.Semaphore(slots)
        self._here: dict[tuple[str, str], list[Delivery]] = {}
        """The groups that it works for, and the last wake-up that came for each meanwhile."""

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled; started means ready. What runs then is left to other runners, at once."""
        await ensure_streams(self._bus)
        leases = await lease_bucket(self._bus, LEASE_BUCKET)
        queue = await self._bus.storage.streams.work(WAKE.name, CONSUMER, ack_wait=ACK_WAIT)
        async with anyio.create_task_group() as tasks:
            task_status.started()
            tasks.start_soon(self._wake_lost)
            await self._fetch(queue, leases, tasks)

    async def _wake_lost(self) -> None:
        """Wake the groups that nobody was told of, once: a worker that starts again may be the one that was killed."""
        try:
            register = await open_register(self._bus)
            for name in await register.names():
                try:
                    await register.wake_if_lost(name)
                except AylluError as error:
                    if error.retryable:
                        raise
                    log.info("the group %r is not woken: %s", name, error)
        except AylluError as error:
            log.warning("groups that nobody was told of are not looked for: %s", error)

    async def _fetch(self, queue: WorkQueue, leases: KeyValue, tasks: TaskGroup) -> None:
        while True:
            for delivery in await fetched(queue, self._free, "wake-ups of groups"):
                try:
                    group = group_of_wake(delivery.entry.subject)
                except ValueError:
                    log.warning("%s wakes no group", delivery.entry.subject)
                    tasks.start_soon(_settle, delivery, None)
                    continue
                if group in self._here:
                    late = self._here[group]
                    if late and late[0].entry.sequence != delivery.entry.sequence:
                        # One look more is for all that came: however many do, no more than one is kept.
                        tasks.start_soon(_settle, late[0], None)
                    late[:] = [delivery]
                    continue
                await self._free.acquire()
                self._here[group] = []
                tasks.start_soon(self._woken, group, delivery, leases)

    async def _woken(self, group: tuple[str, str], delivery: Delivery, leases: KeyValue) -> None:
        """Work for a group that was woken; a slot is taken for it."""
        current_call.set(None)
        again: float | None = 0.0
        try:
            again = await self._serve(group, delivery, leases)
        except AylluError as error:
            log.warning("work for the group %r is put off: %s", group[0], error)
            again = RETRY_SECONDS
            if not error.retryable:
                await _bury(self._bus, delivery, error.message)
                again = None
        except Exception as error:
            # One group must not hold up the others.
            log.exception("work for the group %r fails", group[0])
            await _bury(self._bus, delivery, f"an error of ours: {error!r}")
            again = None
        finally:
            self._free.release()
            late = self._here.pop(group)
            with anyio.move_on_after(2, shield=True):
                await _settle(delivery, again)
                for one in late:
                    # It came after the last look, perhaps.
                    await _settle(one, 0.0)

    async def _serve(
        self, group: tuple[str, str], delivery: Delivery, leases: KeyValue
    ) -> float | None:
        """Work for a group; return after how many seconds its wake-up shall come again, or None."""
        lease = await take_lease(leases, group[1], self.name)
        if lease is None:
            return BUSY_SECONDS
        came: Wait | Done | None = None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_hold, lease, group[0], tasks.cancel_scope)
                tasks.start_soon(_keep, delivery, self._here[group])
                came = await Work(self._bus, self._turns, *group).run()
                tasks.cancel_scope.cancel()
        except* AylluError as errors:
            raise first_of(errors) from None
        finally:
            await lease.release()
        if isinstance(came, Done):
            return None
        if came is None:
            return BUSY_SECONDS  # The lease was lost.
        if came.until is None:
            return None  # Whoever speaks wakes the group.
        return min(max(0.0, came.until - time.time()), LONGEST_WAIT)


async def _hold(lease: Lease, group: str, scope: anyio.CancelScope) -> None:
    """Keep a lease, and end the work once it is lost."""
    await lease.keep()
    log.warning("the lease on the group %r was lost", group)
    scope.cancel()


async def _keep(delivery: Delivery, late: list[Delivery]) -> None:
    """Keep wake-ups while the work goes on."""
    while True:
        await anyio.sleep(KEEP_SECONDS)
        for one in (delivery, *late):
            try:
                await one.in_progress()
            except BusError as error:
                log.debug("a wake-up of a group could not be kept: %s", error)


async def _settle(delivery: Delivery, again: float | None) -> None:
    """Acknowledge a wake-up, or let it come again after so many seconds."""
    try:
        await (delivery.ack() if again is None else delivery.nak(again))
    except BusError as error:
        log.debug("a wake-up of a group was not settled, and comes again: %s", error)


async def _bury(bus: Bus, delivery: Delivery, reason: str) -> None:
    try:
        await bury(bus.storage, delivery.entry, reason=reason, attempts=delivery.attempt)
    except BusError as failed:
        log.warning("a wake-up of a group was not buried: %s", failed)
