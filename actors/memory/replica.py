"""A replica: all banks as one process keeps them, made from the log, and how far it has read."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import anyio
from anyio import CapacityLimiter
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from ...bus.bus import Bus
from ...bus.durable import Entry, Objects
from ...schemas import BusError, NotFound, Unavailable, decode
from .bank import Bank, DocumentChange, unknown_bank
from .log import (
    ENTRIES,
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
from .shared import SharedQuestion
from .snapshots import Snapshots

log = logging.getLogger(__name__)

READ_AHEAD = 256
"""How many entries of the log wait to be applied."""
APPLIED_AT_ONCE = 256
REACH_SECONDS = 30.0
RETRY_SECONDS = 0.5

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
        self.log_id = log_id
        self._advanced = anyio.Event()
        self.changed = anyio.Event()
        self._log_state = SharedQuestion(partial(bus.storage.streams.state, STREAM))
        self.current_at = time.time()
        self.changes = 0
        self._reads = CapacityLimiter(2)
        self._writes = CapacityLimiter(1)

    # What a replica answers.

    async def current(self) -> int:
        """Wait until all is applied that the log held when this was called, and return that sequence.

        Raises:
            Unavailable: the log could not be followed in time.
            BusError: the bus does not answer.
        """
        last = (await self._log_state.answer()).last
        if self.applied < last:
            try:
                with anyio.fail_after(REACH_SECONDS):
                    while self.applied < last:
                        await self._advanced.wait()
            except TimeoutError:
                raise Unavailable("this memory actor is still reading the log") from None
        self.current_at = time.time()
        return last

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
            payload = await self._insist(partial(self.objects.get, change.object))
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
            unused = await self.write(bank.apply, changes)
        self._note(len(changes))
        for name in unused:
            await self._insist(partial(self.objects.delete, name))

    async def _apply_bank(self, uuid: str, entry: Entry, change: BankCreated | BankDropped) -> None:
        old = self.banks.pop(uuid, None)
        if old is not None:
            async with old.lock.writing():
                old.dropped = True
                await self.write(old.store.remove_file)
            self._snapshots.forget(uuid)
        if isinstance(change, BankCreated):
            path = self._snapshots.live_path(uuid)
            make = partial(Bank.empty, uuid, change.name, change.settings, path)
            self.banks[uuid] = await self.write(make)
        else:
            purge = self._bus.storage.streams.purge
            subjects = f"{bank_subject(uuid)}.*"
            await self._insist(partial(purge, STREAM, subjects, before=entry.sequence))
        self._note(1)

    def _note(self, changes: int) -> None:
        self.changes += changes
        self.changed.set()
        self.changed = anyio.Event()

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until the bus answers: what stands in the log is applied in its order, however long the bus is away."""
        while True:
            try:
                return await ask()
            except BusError as error:
                if not error.retryable:
                    raise
                log.warning("the log of memory banks waits for the bus: %s", error)
                await anyio.sleep(RETRY_SECONDS)

    async def write(self, function: Callable[..., T], *args: object) -> T:
        return await anyio.to_thread.run_sync(partial(function, *args), limiter=self._writes)

    async def restore(self) -> None:
        """Take what the snapshot holds."""
        last = (await self._bus.storage.streams.state(STREAM)).last
        self.applied, self.banks = await self.write(self._snapshots.restore, self.log_id, last)

    def close(self) -> None:
        """Close all files."""
        for bank in self.banks.values():
            bank.store.close()
