"""Executors: they take agents that have something to do, and drive their turns, one after the other.

An executor holds the agent's lease while it works for it. What it learns goes to the turn's journal first, and only from
there to anybody; so whoever takes over after it died knows all that anybody knows.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import anyio
from anyio.abc import TaskStatus

from ...bus.bus import Bus
from ...bus.deadletters import bury
from ...bus.durable import Delivery, Entry, KeyValue
from ...bus.transport import Message
from ...schemas import BusError, InvalidRequest
from .journal import durable_claims, ensure_streams, read_command
from .leases import Lease, lease_bucket, take_lease
from .records import (
    AGENTS,
    WAKE,
    Command,
    Delete,
    Execute,
    agent_of_wake,
    command_subject,
    history_subject,
    signal_subject,
)
from .running import Desk, run_turn

log = logging.getLogger(__name__)

CONSUMER = "executors"
FETCH_SECONDS = 5.0
BUSY_SECONDS = 1.0
"""When a wake-up comes again for an agent that another executor works for."""
RETRY_SECONDS = 1.0
ACK_WAIT = 15.0
"""After how long without a word a wake-up goes to another executor, in seconds."""
KEEP_SECONDS = 5.0
SIGNALS = f"{signal_subject('x').rpartition('.')[0]}.*"


class Executor:
    """Takes turns for agents.

    Args:
        bus: the bus.
        slots: for how many agents it works at once.
    """

    def __init__(self, bus: Bus, *, slots: int = 64) -> None:
        self.name = uuid4().hex[:12]
        self._bus = bus
        self._slots = slots
        self._free = anyio.Semaphore(slots)
        self._claims = durable_claims(bus)
        self._desks: dict[str, Desk] = {}  # by the subject of their signal

    @property
    def busy(self) -> int:
        """For how many agents it works."""
        return len(self._desks)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled; started means ready. What runs then is left to other executors, at once."""
        await ensure_streams(self._bus)
        leases = await lease_bucket(self._bus)
        queue = await self._bus.storage.streams.work(WAKE.name, CONSUMER, ack_wait=ACK_WAIT)
        async with (
            self._bus.transport.subscribe(SIGNALS, self._on_signal),
            anyio.create_task_group() as tasks,
        ):
            task_status.started()
            while True:
                await self._free.acquire()
                self._free.release()
                try:
                    deliveries = await queue.fetch(max(1, self._free.value), wait=FETCH_SECONDS)
                except BusError as error:
                    log.warning("wake-ups cannot be fetched: %s", error)
                    await anyio.sleep(RETRY_SECONDS)
                    continue
                for delivery in deliveries:
                    await self._free.acquire()
                    tasks.start_soon(self._serve, leases, delivery)

    def _on_signal(self, message: Message) -> None:
        desk = self._desks.get(message.subject)
        if desk is not None:
            desk.look.set()

    async def _serve(self, leases: KeyValue, delivery: Delivery) -> None:
        try:
            await self._handle(leases, delivery)
        except BusError as error:
            # Not acknowledged: it comes again.
            log.warning("work for an agent is put off: %s", error)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(1, shield=True):
                await _hand_back(delivery)
            raise
        finally:
            self._free.release()

    async def _handle(self, leases: KeyValue, delivery: Delivery) -> None:
        try:
            agent = agent_of_wake(delivery.entry.subject)
        except ValueError:
            log.warning("%s wakes nobody", delivery.entry.subject)
            await delivery.term()
            return
        if await self._next_command(agent, 0) is None:
            await delivery.ack()
            return
        lease = await take_lease(leases, agent, self.name)
        if lease is None:
            await delivery.nak(BUSY_SECONDS)
            return
        async with self._at_desk(agent, lease, delivery) as desk:
            await self._work(desk)
        if desk.done:
            await delivery.ack()
        else:
            await delivery.nak(RETRY_SECONDS)

    @asynccontextmanager
    async def _at_desk(self, agent: str, lease: Lease, delivery: Delivery) -> AsyncIterator[Desk]:
        """Work for an agent while the lease lasts."""
        desk = Desk(self._bus, self._claims, agent, self.name)
        signal = signal_subject(agent)
        self._desks[signal] = desk
        try:
            async with anyio.create_task_group() as tasks:

                async def hold() -> None:
                    await lease.keep()
                    log.warning("the lease on %r was lost", agent)
                    tasks.cancel_scope.cancel()

                tasks.start_soon(hold)
                tasks.start_soon(_keep_delivery, delivery)
                yield desk
                tasks.cancel_scope.cancel()
        finally:
            if self._desks.get(signal) is desk:
                del self._desks[signal]
            await lease.release()

    async def _work(self, desk: Desk) -> None:
        """Do what the agent was asked for, in order, until nothing is left."""
        after = 0
        while (entry := await self._next_command(desk.agent, after)) is not None:
            command = await self._read(desk, entry)
            if isinstance(command, Execute):
                if not await run_turn(desk, entry, command):
                    return  # Another executor works on it.
            elif isinstance(command, Delete):
                # All of it is of turns that were asked for before: they are taken in order.
                await self._bus.storage.streams.purge(AGENTS.name, history_subject(desk.agent))
            await self._done(desk.agent, entry)
            after = entry.sequence
        desk.done = True

    async def _next_command(self, agent: str, after: int) -> Entry | None:
        streams = self._bus.storage.streams
        return await streams.first(AGENTS.name, command_subject(agent), after=after)

    async def _read(self, desk: Desk, entry: Entry) -> Command | None:
        """Return a command; one that cannot be read becomes a dead letter."""
        try:
            return await read_command(self._claims, entry)
        except InvalidRequest as error:
            reason = error.message
            await bury(self._bus.storage, entry, reason=reason, attempts=1)
            log.warning("a command of %r was buried: %s", desk.agent, reason)
            return None

    async def _done(self, agent: str, entry: Entry) -> None:
        streams = self._bus.storage.streams
        await streams.purge(AGENTS.name, command_subject(agent), before=entry.sequence + 1)


async def _hand_back(delivery: Delivery) -> None:
    try:
        await delivery.nak()
    except BusError as error:
        log.debug("a wake-up was not handed back: %s", error)


async def _keep_delivery(delivery: Delivery) -> None:
    while True:
        await anyio.sleep(KEEP_SECONDS)
        try:
            await delivery.in_progress()
        except BusError as error:
            log.debug("a wake-up could not be kept: %s", error)
