"""The worker: answers the events of all triggers, and tells when schedules are due.

Each trigger is a durable consumer that all workers share. An event becomes a message to the agent's inbox, whose id and
whose turn's id are made of the trigger's and the event's; then it is acknowledged. So a worker that is killed between
the two starts nothing twice: another one sends the same message again, which is stored once, and is the same turn.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from datetime import UTC, datetime

import anyio
from anyio.abc import TaskGroup, TaskStatus

from ...bus.durable import Delivery, Entry
from ...bus.subjects import MAX_TOKEN
from ...bus.transport import Message
from ...schemas import AylluError, InvalidRequest, ScheduleDue, decode, encode
from ..agents.streams import inbox_subject
from ..events import EVENTS
from ..patience import persistently
from .answering import Fire, Refuse, Skip, answer
from .records import SIGNAL, Counted, TriggerRecord, due_subject
from .schedules import next_due
from .shelf import MAX_TRIGGERS, Counts, Shelf

log = logging.getLogger(__name__)

ACK_WAIT = 10.0
"""Seconds after which an event of a worker that was lost is answered by another one."""
BATCH = 8
AT_ONCE = 32
"""How many events are answered at the same time."""
FETCH_SECONDS, NO_WAIT = 5.0, 0.01
RETRY_SECONDS = 0.5
SCAN_SECONDS = 15.0
"""How often all triggers are looked at: for those of which no signal came."""
COUNT_SECONDS = 1.0
LATE_SECONDS = 60.0
"""By how much a schedule may be told late; what is due while everything is down is not made up for."""
LONGEST_SLEEP = 30.0
"""A machine that slept has another time than it thought."""
CLOSE_SECONDS = 2.0


class TriggerWorker:
    """Answers events. Several share the work.

    Args:
        shelf: the triggers.
        ack_wait: see `ACK_WAIT`.
    """

    def __init__(self, shelf: Shelf, *, ack_wait: float = ACK_WAIT) -> None:
        self._shelf = shelf
        self._streams = shelf.bus.storage.streams
        self._ack_wait = ack_wait
        self._counts = Counts()
        self._room = anyio.Semaphore(AT_ONCE)
        self._running: dict[str, tuple[TriggerRecord, anyio.CancelScope]] = {}
        self._named: set[str] = set()
        self._look = anyio.Event()
        self._scan_at = 0.0

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled; started means ready: all triggers that there are are answered."""
        try:
            async with (
                self._shelf.bus.transport.subscribe(SIGNAL, self._on_signal),
                anyio.create_task_group() as tasks,
            ):
                for name in await self._shelf.names():
                    await self._look_at(name, tasks)
                self._scan_at = anyio.current_time() + SCAN_SECONDS
                task_status.started()
                tasks.start_soon(self._keep_counts)
                while True:
                    await self._look_around(tasks)
        finally:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._counted()

    def _on_signal(self, message: Message) -> None:
        # Anybody may publish here; what is left out, the next look at all of them finds.
        if len(message.payload) <= MAX_TOKEN and len(self._named) < MAX_TRIGGERS:
            self._named.add(message.payload.decode(errors="replace"))
        self._look.set()

    async def _look_around(self, tasks: TaskGroup) -> None:
        """Look at the triggers of which signals come, and now and then at all of them."""
        with anyio.move_on_at(self._scan_at):
            await self._look.wait()
        self._look = anyio.Event()
        try:
            if anyio.current_time() >= self._scan_at:
                self._named |= {*await self._shelf.names(), *self._running}
                self._scan_at = anyio.current_time() + SCAN_SECONDS
            while self._named:
                name = self._named.pop()
                try:
                    await self._look_at(name, tasks)
                except AylluError:
                    self._named.add(name)
                    raise
        except AylluError as error:
            log.warning("triggers are looked at later: %s", error)
            await anyio.sleep(RETRY_SECONDS)
            self._look.set()

    async def _look_at(self, name: str, tasks: TaskGroup) -> None:
        """Begin to answer for what was created, and stop where it was removed."""
        try:
            record = await self._shelf.find(name)
        except InvalidRequest as error:
            log.warning("%r is no trigger: %s", name, error)
            return
        known = self._running.get(name)
        if known is not None and (record is None or record.id != known[0].id):
            known[1].cancel()
            self._counts.drop(known[0])
            await self._shelf.clear(known[0])  # It is known until that has been done.
            del self._running[name]
            known = None
        if record is not None and known is None:
            scope = anyio.CancelScope()
            self._running[name] = record, scope
            tasks.start_soon(self._serve, record, scope)

    async def _serve(self, record: TriggerRecord, scope: anyio.CancelScope) -> None:
        with scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._answer_all, record)
                if record.config.schedule is not None:
                    tasks.start_soon(self._tell_due, record)

    async def _answer_all(self, record: TriggerRecord) -> None:
        while True:
            try:
                # Another worker may have seen that it is gone, and removed its consumer.
                current = await self._shelf.find(record.name)
                if current is None or current.id != record.id:
                    self._named.add(record.name)
                    self._look.set()
                    await anyio.sleep_forever()
                queue = await self._streams.work(
                    EVENTS.name,
                    record.consumer,
                    subject=record.subject,
                    after=record.after,
                    ack_wait=self._ack_wait,
                )
                found: list[Delivery] = []
                while True:
                    # One at first: a fetch of several looks for more before it returns.
                    most, wait = (BATCH, NO_WAIT) if found else (1, FETCH_SECONDS)
                    found = await queue.fetch(most, wait=wait)
                    await self._answer_some(record, deque(found))
            except AylluError as error:
                log.info("the trigger %r goes on later: %s", record.name, error)
                await anyio.sleep(RETRY_SECONDS)

    async def _answer_some(self, record: TriggerRecord, deliveries: deque[Delivery]) -> None:
        """Answer events one after the other: an agent hears of them in their order."""
        try:
            while deliveries:
                async with self._room:
                    counted = await self._answer(record, deliveries[0].entry)
                    await deliveries[0].ack()
                deliveries.popleft()
                self._counts.add(record, counted)
        except BaseException:
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await _hand_back(deliveries)
            raise

    async def _answer(self, record: TriggerRecord, entry: Entry) -> Counted:
        """Answer an event, and return what to count.

        Raises:
            AylluError: not now; try again.
        """
        try:
            made = answer(record, entry.subject, entry.sequence, entry.payload)
        except Exception as error:
            # One event must not hold up those that follow.
            log.exception("the trigger %r fails on an event", record.name)
            made = Refuse(f"an error of ours: {error!r}")
        if isinstance(made, Fire):
            made = await self._fired(made) or made
        match made:
            case Fire():
                return Counted(fired=1, last_fired=time.time())
            case Skip():
                return Counted(skipped=1)
            case Refuse(reason):
                told = f"event {entry.sequence} on {entry.subject}: {reason}"
                log.warning("the trigger %r starts nothing: %s", record.name, told)
                return Counted(refused=1, last_error=told)

    async def _fired(self, fire: Fire) -> Refuse | None:
        """Tell the agent, and return why that cannot be.

        Raises:
            AylluError: not now; try again.
        """
        request = fire.request
        if await self._shelf.agents.get(request.agent_uuid) is None:
            return Refuse(f"there is no agent {request.agent_uuid!r}")
        subject, turn = inbox_subject(request.agent_uuid), request.turn_id or ""
        try:
            await self._streams.append(subject, encode(request), msg_id=turn)
        except AylluError as error:
            if error.retryable:
                raise
            return Refuse(error.message)
        return None

    async def _tell_due(self, record: TriggerRecord) -> None:
        """Tell when the schedule is due. All workers do, and it is stored once."""
        schedule, last = record.config.schedule, datetime.now(UTC)
        assert schedule is not None
        while (due := next_due(schedule, record.created_at, last)) is not None:
            late = await _late(due)
            last = max(due, datetime.now(UTC))
            if late > LATE_SECONDS:
                log.warning(
                    "the trigger %r was due at %s, and is not made up for", record.name, due
                )
                continue
            try:
                await persistently(lambda at=due: self._due(record, at), patience=LATE_SECONDS)  # type: ignore[misc]
            except AylluError as error:
                log.warning("the trigger %r was due at %s: %s", record.name, due, error)
        await anyio.sleep_forever()

    async def _due(self, record: TriggerRecord, at: datetime) -> None:
        subject = due_subject(record.name)
        # The id keeps it from being stored twice for two minutes; clocks may differ by more.
        last = await self._streams.last(EVENTS.name, subject)
        # What stood there before was told of another trigger that had its name.
        if last is None or last.sequence <= record.after or not _told(last, at):
            event = ScheduleDue(record.name, at)
            msg_id = f"schedule:{record.id}:{at.timestamp()!r}"
            await self._streams.append(subject, encode(event), msg_id=msg_id)

    async def _keep_counts(self) -> None:
        while True:
            await anyio.sleep(COUNT_SECONDS)
            await self._counted()

    async def _counted(self) -> None:
        try:
            await self._counts.keep(self._shelf)
        except AylluError as error:
            log.info("what triggers have done is counted later: %s", error)


async def _late(due: datetime) -> float:
    """Wait until a time, and return by how many seconds it is over."""
    while (wait := (due - datetime.now(UTC)).total_seconds()) > 0:  # noqa: ASYNC110 - it is the clock that tells
        await anyio.sleep(min(wait, LONGEST_SLEEP))
    return -wait


async def _hand_back(deliveries: deque[Delivery]) -> None:
    try:
        for delivery in deliveries:
            await delivery.nak(RETRY_SECONDS)
    except AylluError as error:
        log.debug("an event comes again later: %s", error)


def _told(last: Entry, at: datetime) -> bool:
    try:
        return decode(last.payload, ScheduleDue).at >= at
    except InvalidRequest:
        return False
