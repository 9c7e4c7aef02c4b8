"""Executors: they take agents that have something to do, and drive their turns, one after the other.

An executor holds the agent's lease while it works for it, and for a moment longer, so that what comes next begins at once.
What it learns goes to the turn's journal first, and only from there to anybody; so whoever takes over after it died knows all
that anybody knows.
"""

from __future__ import annotations

import logging
import time
from uuid import uuid4

import anyio
from anyio.abc import TaskGroup, TaskStatus
from msgspec.structs import replace

from ...bus.bus import Bus
from ...bus.context import current_call
from ...bus.deadletters import bury
from ...bus.durable import Delivery, Entry, KeyValue, WorkQueue
from ...bus.transport import Message
from ...schemas import AylluError, BusError, InvalidRequest, NotFound
from ..attachments.settings import AttachmentsConfig
from ..events import ensure_events
from ..leases import lease_bucket, take_lease
from ..wakeups import RETRY_SECONDS, fetched
from .desk import LEASE_BUCKET, Desk, Office
from .ending import refuse
from .entries import durable_claims, ensure_streams, turn_of
from .hub import Hub
from .inbox import Postman, is_inbox, read_entry
from .records import Command, Delete, Execute
from .running import Parked, run_turn
from .streams import (
    AGENTS,
    JOURNAL,
    WAKE,
    agent_of,
    command_subject,
    history_subject,
    inbox_subject,
    journal_subject,
    lane_of_signal,
    lane_of_wake,
    signal_subject,
    turn_of_lane,
)

log = logging.getLogger(__name__)

CONSUMER = "executors"
SLOTS = 256
BUSY_SECONDS = 1.0
"""When a wake-up comes again for an agent that another executor works for."""
IDLE_SECONDS = 2.0
"""How long an executor stays with an agent that has nothing to do."""
ACK_WAIT = 5.0
"""After how long without a word a wake-up goes to another executor, in seconds."""
KEEP_SECONDS = 1.5
ATTACHMENTS = AttachmentsConfig()
LONGEST_PARKED = 3600.0
"""After how long somebody looks at a turn that waits for people, at the latest."""
SIGNALS = signal_subject("x").removesuffix("x") + "*"


class Executor:
    """Takes turns for agents.

    Args:
        bus: the bus.
        slots: for how many agents it works at once.
        attachments: what the attachments of a turn may cost, and from where they may come.

    Attributes:
        hub: tells readers of the same process.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        slots: int = SLOTS,
        attachments: AttachmentsConfig = ATTACHMENTS,
    ) -> None:
        self.name = uuid4().hex[:12]
        self.hub = Hub()
        self._bus = bus
        self._slots = slots
        self._free = anyio.Semaphore(slots)
        claims = durable_claims(bus)
        self._office = Office(
            bus,
            claims,
            self.hub,
            self.name,
            attachments,
            start=self.start,
            is_roomy=self._is_roomy,
        )
        self._desks: dict[str, Desk] = {}
        self._leases: KeyValue | None = None
        self._tasks: TaskGroup | None = None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled; started means ready. What runs then is left to other executors, at once."""
        await ensure_streams(self._bus)
        await ensure_events(self._bus)
        self._leases = await lease_bucket(self._bus, LEASE_BUCKET)
        queue = await self._bus.storage.streams.work(WAKE.name, CONSUMER, ack_wait=ACK_WAIT)
        async with (
            self._bus.transport.subscribe(SIGNALS, self._on_signal),
            anyio.create_task_group() as tasks,
        ):
            self._tasks = tasks
            await tasks.start(Postman(self._bus, self.start).run)
            try:
                task_status.started()
                await self._fetch(queue, tasks)
            finally:
                self._tasks = None

    async def _fetch(self, queue: WorkQueue, tasks: TaskGroup) -> None:
        while True:
            for delivery in await fetched(queue, self._free, "wake-ups"):
                try:
                    lane = lane_of_wake(delivery.entry.subject)
                except ValueError:
                    log.warning("%s wakes nobody", delivery.entry.subject)
                    tasks.start_soon(_settle, [delivery], True)
                    continue
                desk = self._desks.get(lane)
                if desk is None:
                    await self._free.acquire()
                    tasks.start_soon(self._woken, lane, delivery)
                elif not desk.keep(delivery):
                    tasks.start_soon(_settle, [delivery], True)

    def _on_signal(self, message: Message) -> None:
        desk = self._desks.get(lane_of_signal(message.subject))
        if desk is not None:
            desk.look.set()

    async def start(self, lane: str) -> bool:
        """Work in a lane if this executor may, without waiting for a wake-up; return whether it does."""
        desk = self._desks.get(lane)
        if desk is not None:
            desk.look.set()
            return True
        if self._tasks is None or not self._free.value:
            return False
        self._free.acquire_nowait()
        try:
            desk = await self._open(lane)
        except AylluError:
            return False
        if desk is None:
            return False
        self._tasks.start_soon(self._serve, desk)
        return True

    def _is_roomy(self) -> bool:
        """Tell whether there are slots enough for one to be kept by what has nothing to do."""
        return self._free.value > self._slots // 2

    async def _woken(self, lane: str, delivery: Delivery) -> None:
        """Work in a lane that somebody was woken for; a slot is taken for it."""
        desk: Desk | None = None
        try:
            if not await self._pending(lane):
                self._free.release()
                await _settle([delivery], True)
            elif lane in self._desks:
                self._free.release()
                if not self._desks[lane].keep(delivery):
                    await _settle([delivery], True)
            else:
                desk = await self._open(lane)
                if desk is None:
                    await _settle([delivery], False, BUSY_SECONDS)
        except AylluError as error:
            # Not acknowledged: it comes again.
            log.warning("work for an agent is put off: %s", error)
        if desk is not None:
            desk.deliveries.append(delivery)
            await self._serve(desk)

    async def _pending(self, lane: str) -> bool:
        """Tell whether there is anything to do in a lane; a slot that was taken for it is free if this cannot be told."""
        try:
            return await self._next_command(lane, 0) is not None
        except BaseException:
            self._free.release()
            raise

    async def _open(self, lane: str) -> Desk | None:
        """Return a desk for a lane, with its lease; None, and the slot is free, while another executor has that."""
        desk = self._desks[lane] = Desk(self._office, lane)
        try:
            if self._leases is not None:
                desk.lease = await take_lease(self._leases, lane, self.name)
        finally:
            if desk.lease is None:
                self._leave(desk)
        return desk if desk.lease is not None else None

    def _leave(self, desk: Desk) -> None:
        self._free.release()
        if self._desks.get(desk.lane) is desk:
            del self._desks[desk.lane]
            # Whoever waits for a turn of the lane may wait for another executor now.
            self.hub.let_go(desk.agent, turn_of_lane(desk.lane))

    async def _serve(self, desk: Desk) -> None:
        """Work at a desk as long as there is something to do, and its lease lasts."""
        # A turn outlives the call that asked for it: neither its deadline nor its trace are those of this work.
        current_call.set(None)
        done: bool | Parked | None = False
        try:
            async with anyio.create_task_group() as tasks:

                async def hold() -> None:
                    if desk.lease is not None:
                        await desk.lease.keep()
                    log.warning("the lease on %r was lost", desk.lane)
                    tasks.cancel_scope.cancel()

                tasks.start_soon(hold)
                tasks.start_soon(_keep_deliveries, desk)
                done = await self._work(desk)
                tasks.cancel_scope.cancel()
        except* AylluError as group:
            log.warning("work for an agent is put off: %s", group.exceptions[0])
            done = None
        finally:
            self._leave(desk)
            with anyio.move_on_after(2, shield=True):
                if desk.lease is not None:
                    await desk.lease.release()
                await _hand_back(desk, done)

    async def _work(self, desk: Desk) -> bool | Parked:
        """Do what the agent was asked for, in order; true when nothing was left for a while."""
        after = 0
        while True:
            desk.look = anyio.Event()
            while (entry := await self._next_command(desk.lane, after)) is not None:
                command = await self._read(desk, entry)
                if isinstance(command, Execute):
                    came = await run_turn(desk, entry, command)
                    if came == "fenced":
                        return False  # Another executor works on it.
                    if isinstance(came, Parked):
                        if desk.look.is_set():
                            desk.look = anyio.Event()
                            continue
                        return came
                elif isinstance(command, Delete) and desk.lane == desk.agent:
                    # All of it is of turns that were asked for before: they are taken in order.
                    await self._purge(history_subject(desk.agent))
                    desk.record = None
                await self._purge(entry.subject, entry.sequence + 1)
                after = entry.sequence
            deliveries, desk.deliveries = desk.deliveries, []
            await _settle(deliveries, True)
            # Where others may want the slot, nobody waits in it; and nothing follows a detached turn.
            waits = desk.lane == desk.agent and self._is_roomy()
            patience = IDLE_SECONDS if waits else 0
            with anyio.move_on_after(patience):
                await desk.look.wait()
            if not desk.look.is_set():
                return True

    async def _next_command(self, lane: str, after: int) -> Entry | None:
        """Return what is to be done next: what came first, by command or into the inbox."""
        streams = self._bus.storage.streams
        command = await streams.first(AGENTS.name, command_subject(lane), after=after)
        if lane != agent_of(lane):
            return command
        told = await streams.first(AGENTS.name, inbox_subject(lane), after=after)
        return min(
            (one for one in (command, told) if one is not None),
            key=lambda one: one.sequence,
            default=None,
        )

    async def _read(self, desk: Desk, entry: Entry) -> Command | None:
        """Return a command; one that cannot be read becomes a dead letter."""
        try:
            command = await read_entry(self._office.claims, entry)
            if is_inbox(entry.subject) and isinstance(command, Execute):
                # Who publishes does not know when the agent was created. What was read of it holds: its end is a command.
                record = desk.record or await desk.agent_record(0.0)
                if record is not None:
                    command = replace(command, created=record.created)
                elif not await self._has_begun(desk.agent, turn_of(entry, command)):
                    raise NotFound(f"there is no agent {desk.agent!r}")
        except (InvalidRequest, NotFound) as error:
            await bury(self._bus.storage, entry, reason=error.message, attempts=1)
            log.warning("what %r was asked for was buried: %s", desk.agent, error.message)
            await refuse(self._bus, entry, error)
            return None
        return command

    async def _has_begun(self, agent: str, turn: str) -> bool:
        """Tell whether a turn has begun: then it is brought to its end, even if its agent was deleted meanwhile."""
        subject = journal_subject(agent, turn)
        return await self._bus.storage.streams.first(JOURNAL.name, subject) is not None

    async def _purge(self, subject: str, before: int | None = None) -> None:
        await self._bus.storage.streams.purge(AGENTS.name, subject, before=before)


async def _settle(deliveries: list[Delivery], done: bool, delay: float = 0.0) -> None:
    """Acknowledge wake-ups, or hand them back."""
    for delivery in deliveries:
        try:
            await (delivery.ack() if done else delivery.nak(delay))
        except BusError as error:
            log.debug("a wake-up was not settled, and comes again: %s", error)


async def _hand_back(desk: Desk, done: bool | Parked | None) -> None:
    """Let go of the wake-ups of an agent: they come again where something is left to do."""
    if done is None:
        await _settle(desk.deliveries, False, RETRY_SECONDS)  # It failed.
    elif desk.look.is_set():
        await _settle(desk.deliveries, False)  # Something was asked since the last look.
    elif isinstance(done, Parked):
        left = max(0.0, done.until - time.time())
        await _settle(desk.deliveries, False, min(left, LONGEST_PARKED))
    else:
        await _settle(desk.deliveries, done)


async def _keep_deliveries(desk: Desk) -> None:
    while True:
        await anyio.sleep(KEEP_SECONDS)
        for delivery in list(desk.deliveries):
            try:
                await delivery.in_progress()
            except BusError as error:
                log.debug("a wake-up could not be kept: %s", error)
