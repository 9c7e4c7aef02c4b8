"""A replica: all banks as one process keeps them, made from the log, and how far it has read."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import anyio
from anyio import CapacityLimiter
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from ...bus.bus import Bus
from ...bus.durable import Entry, Objects
from ...schemas import BusError, Conflict, NotFound, Unavailable, decode, encode
from ...schemas.tasks import background_tasks
from .bank import Bank, DocumentChange, unknown_bank
from .log import (
    ENTRIES,
    IDENTITY_SUBJECT,
    LOG,
    STREAM,
    BankCreated,
    BankDropped,
    Change,
    Claimed,
    DocumentDeleted,
    DocumentStored,
    Identity,
    bank_subject,
    names_of,
)
from .snapshots import STALE_SECONDS, Snapshots, own_folder

log = logging.getLogger(__name__)

OBJECTS, OBJECTS_BYTES = "banks", 8 << 30
READ_AHEAD = 256
"""How many entries of the log wait to be applied."""
APPLIED_AT_ONCE = 256
KEEP_SECONDS = 30.0
"""How often the replica looks whether it is up to date and whether a snapshot is worth it."""
KEEP_CHANGES = 2000
"""After how many changes a snapshot is worth it; one is also made at the end."""
REACH_SECONDS = 30.0
SLICE_SECONDS = 0.02
"""How long the index may keep a bank's readers waiting at a time."""

T = TypeVar("T")
Group = list[tuple[Entry, Change]]


class Replica:
    """All banks; opened by `open_replica`."""

    def __init__(self, bus: Bus, snapshots: Snapshots, log_id: str, objects: Objects) -> None:
        self.banks: dict[str, Bank] = {}
        self.applied = 0
        self._bus = bus
        self.objects = objects
        self._snapshots = snapshots
        self._log_id = log_id
        self._advanced = anyio.Event()
        self._changed = anyio.Event()
        self._asking: _Asking | None = None
        self._current_at = time.time()
        self._changes = 0
        self._reads = CapacityLimiter(2)
        self._writes = CapacityLimiter(1)
        self._keeping = anyio.Lock()

    # What a replica answers.

    async def current(self) -> int:
        """Wait until all is applied that the log held when this was called, and return that sequence.

        Raises:
            Unavailable: the log could not be followed in time.
            BusError: the bus does not answer.
        """
        last = await self._last_sequence()
        if self.applied < last:
            try:
                with anyio.fail_after(REACH_SECONDS):
                    while self.applied < last:
                        await self._advanced.wait()
            except TimeoutError:
                raise Unavailable("this memory actor is still reading the log") from None
        self._current_at = time.time()
        return last

    async def _last_sequence(self) -> int:
        """Ask the log for its last sequence; those who come while one asks share the next question."""
        while True:
            asking = self._asking
            if asking is None:
                asking = self._asking = _Asking()
                return await self._ask(asking)
            joined = not asking.sent
            await asking.done.wait()
            # Whoever asked may have been cancelled: then the next one asks.
            if joined and (asking.last is not None or asking.error is not None):
                return asking.result()

    async def _ask(self, asking: _Asking) -> int:
        try:
            # Whoever comes in this turn of the loop shares this question.
            await anyio.lowlevel.checkpoint()
            asking.sent = True
            asking.last = (await self._bus.storage.streams.state(STREAM)).last
        except Exception as error:
            asking.error = error
        finally:
            self._asking = None
            asking.done.set()
        return asking.result()

    def bank(self, uuid: str) -> Bank:
        """Return a bank.

        Raises:
            NotFound: there is none of this name.
        """
        bank = self.banks.get(uuid)
        if bank is None:
            raise unknown_bank(uuid)
        return bank

    async def read(self, bank: Bank, function: Callable[..., T], *args: object) -> T:
        """Run a function that reads a bank, in a thread.

        Raises:
            NotFound: the bank was dropped meanwhile.
        """
        async with bank.lock.reading():
            bank.check()
            return await anyio.to_thread.run_sync(partial(function, *args), limiter=self._reads)

    # How it follows the log.

    async def follow(self, sequence: int) -> None:
        """Apply the log after a sequence until cancelled; call `catch_up` before."""
        send, receive = anyio.create_memory_object_stream[Entry](READ_AHEAD)
        async with anyio.create_task_group() as tasks, send, receive:
            tasks.start_soon(self._read_log, sequence, send)
            await self._apply_all(receive)

    async def _read_log(self, sequence: int, send: MemoryObjectSendStream[Entry]) -> None:
        async with self._bus.storage.streams.read(STREAM, after=sequence) as entries:
            async for entry in entries:
                await send.send(entry)

    async def catch_up(self) -> None:
        """Apply what stands in the log now."""
        streams = self._bus.storage.streams
        end = (await streams.state(STREAM)).last
        send, receive = anyio.create_memory_object_stream[Entry](READ_AHEAD)

        async def replay() -> None:
            async with send, streams.replay(STREAM, after=self.applied) as entries:
                async for entry in entries:
                    await send.send(entry)

        async with anyio.create_task_group() as tasks, receive:
            tasks.start_soon(replay)
            await self._apply_all(receive)
        self._advance(end)

    async def _apply_all(self, entries: MemoryObjectReceiveStream[Entry]) -> None:
        """Apply entries, request by request: half a request is never seen."""
        waiting: Group = []
        async for first in entries:
            arrived = [first]
            with suppress(anyio.WouldBlock, anyio.EndOfStream):
                while len(arrived) < APPLIED_AT_ONCE:
                    arrived.append(entries.receive_nowait())
            whole: list[Group] = []
            for entry in arrived:
                change = ENTRIES.decode(entry.payload)
                if isinstance(change, Identity):
                    continue
                # The end of a request is missing where a later one has replaced it.
                if waiting and waiting[0][1].request != change.request:
                    whole.append(waiting)
                    waiting = []
                waiting.append((entry, change))
                if change.end:
                    whole.append(waiting)
                    waiting = []
            await self._apply(whole)
            self._advance(waiting[0][0].sequence - 1 if waiting else arrived[-1].sequence)
        await self._apply([waiting])

    def _advance(self, sequence: int) -> None:
        if sequence > self.applied:
            self.applied = sequence
            self._advanced.set()
            self._advanced = anyio.Event()

    async def _apply(self, groups: Sequence[Group]) -> None:
        """Apply requests; neighbours that change documents of one bank go into one transaction."""
        pending: tuple[Bank, list[DocumentChange]] | None = None
        for entry, change in (item for group in groups for item in group):
            uuid, document = names_of(entry.subject)
            bank = self.banks.get(uuid)
            if isinstance(change, BankCreated | BankDropped):
                await self._apply_documents(pending)
                pending = None
                await self._apply_bank(uuid, entry, change)
            elif bank is not None and document is not None:
                if pending is not None and pending[0] is not bank:
                    await self._apply_documents(pending)
                    pending = None
                pending = pending or (bank, [])
                found = await self._document_change(document, change)
                if found is not None:
                    pending[1].append(found)
            # What is left of a bank that was dropped is removed from the log after its marker.
        await self._apply_documents(pending)

    async def _document_change(self, uuid: str, change: Change) -> DocumentChange | None:
        if isinstance(change, DocumentDeleted):
            return DocumentChange(uuid, None)
        if isinstance(change, DocumentStored):
            return DocumentChange(uuid, change)
        if not isinstance(change, Claimed):
            raise BusError("the log of memory banks has an entry that is none", retryable=False)
        try:
            payload = await self.objects.get(change.object)
        except NotFound:
            # A later entry has replaced this one, and is on its way to us.
            log.info("a document that was replaced meanwhile is skipped")
            return None
        if hashlib.sha256(payload).hexdigest() != change.sha256:
            raise BusError("a stored document is damaged", retryable=False)
        return DocumentChange(uuid, decode(payload, DocumentStored), change.object)

    async def _apply_documents(self, pending: tuple[Bank, list[DocumentChange]] | None) -> None:
        if pending is None:
            return
        bank, changes = pending
        async with bank.lock.writing():
            unused = await self._write(bank.apply, changes)
        self._note(len(changes))
        for name in unused:
            await self.objects.delete(name)

    async def _apply_bank(self, uuid: str, entry: Entry, change: BankCreated | BankDropped) -> None:
        old = self.banks.pop(uuid, None)
        if old is not None:
            async with old.lock.writing():
                old.dropped = True
                await self._write(old.store.remove_file)
            self._snapshots.forget(uuid)
        if isinstance(change, BankCreated):
            path = self._snapshots.live_path(uuid)
            make = partial(Bank.empty, uuid, change.name, change.settings, path)
            self.banks[uuid] = await self._write(make)
        else:
            await self._bus.storage.streams.purge(
                STREAM, f"{bank_subject(uuid)}.*", before=entry.sequence
            )
        self._note(1)

    def _note(self, changes: int) -> None:
        self._changes += changes
        self._changed.set()
        self._changed = anyio.Event()

    async def _write(self, function: Callable[..., T], *args: object) -> T:
        return await anyio.to_thread.run_sync(partial(function, *args), limiter=self._writes)

    # What it does beside.

    async def tend(self) -> None:
        """Move new vectors into the graphs, a slice at a time, until cancelled."""
        while True:
            changed = self._changed
            more = False
            for bank in list(self.banks.values()):
                async with bank.lock.writing():
                    if not bank.dropped:
                        more |= await self._write(bank.index.maintain, SLICE_SECONDS)
            if not more:
                await changed.wait()

    async def keep(self) -> None:
        """Make snapshots from time to time, until cancelled.

        Raises:
            Unavailable: the log could not be followed for so long that markers in it may have gone: start anew.
        """
        while True:
            await anyio.sleep(KEEP_SECONDS)
            try:
                await self.current()
            except (BusError, Unavailable) as error:
                log.warning("memory banks do not follow the log: %s", error)
                if time.time() - self._current_at > STALE_SECONDS:
                    raise Unavailable("the banks are too old and must be read anew") from error
                continue
            if self._changes >= KEEP_CHANGES:
                await self.snapshot()

    async def snapshot(self) -> None:
        """Make a snapshot of what is applied now."""
        async with self._keeping:
            sequence, changes = self.applied, self._changes
            for bank in list(self.banks.values()):
                async with bank.lock.reading():
                    if not bank.dropped:
                        await anyio.to_thread.run_sync(self._snapshots.keep, bank)
            await anyio.to_thread.run_sync(self._snapshots.commit, self._log_id, sequence)
            self._changes -= changes

    async def restore(self) -> None:
        """Take what the snapshot holds."""
        last = (await self._bus.storage.streams.state(STREAM)).last
        self.applied, self.banks = await self._write(
            self._snapshots.restore, self._log_id, last
        )

    def close(self) -> None:
        """Close all files."""
        for bank in self.banks.values():
            bank.store.close()


class _Asking:
    """One question for the last sequence, which several share."""

    def __init__(self) -> None:
        self.sent = False
        self.done = anyio.Event()
        self.last: int | None = None
        self.error: Exception | None = None

    def result(self) -> int:
        if self.last is None:
            raise self.error or BusError("the log was not asked")
        return self.last


@asynccontextmanager
async def open_replica(bus: Bus, data_dir: Path) -> AsyncIterator[Replica]:
    """Open a replica that has read the log; at its end a snapshot is made.

    Args:
        bus: the bus.
        data_dir: where replicas of this machine have their folders.

    Raises:
        BusError: the log cannot be read.
        Unavailable: the folders are taken.
    """
    with own_folder(data_dir) as folder:
        await bus.storage.streams.ensure(LOG)
        objects = await bus.storage.objects(OBJECTS, max_bytes=OBJECTS_BYTES)
        replica = Replica(bus, Snapshots(folder), await _identity(bus), objects)
        try:
            await replica.restore()
            await replica.catch_up()
            async with background_tasks() as tasks:
                for task in (partial(replica.follow, replica.applied), replica.tend, replica.keep):
                    tasks.start_soon(task)
                yield replica
        except anyio.get_cancelled_exc_class():
            await _last_snapshot(replica)
            raise
        else:
            await _last_snapshot(replica)
        finally:
            replica.close()


async def _last_snapshot(replica: Replica) -> None:
    with anyio.move_on_after(KEEP_SECONDS, shield=True):
        await replica.snapshot()


async def _identity(bus: Bus) -> str:
    """Return which log this is; the first who asks gives it a name."""
    streams = bus.storage.streams
    name = uuid4().hex
    with suppress(Conflict):
        await streams.append(
            IDENTITY_SUBJECT, encode(Identity(name)), msg_id=f"log {name}", expected_last=0
        )
    entry = await streams.last(STREAM, IDENTITY_SUBJECT)
    if entry is None:
        raise BusError("the log of memory banks has no name")
    return decode(entry.payload, Identity).id
