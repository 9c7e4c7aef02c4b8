"""Streams and work queues in memory: see `ayllu.bus.memory`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from uuid import uuid4

import anyio

from ..schemas import BusError, Conflict, InvalidRequest, NotFound, Overloaded, Unsupported
from .durable import (
    Appended,
    Delivery,
    Entry,
    NewEntry,
    StreamSpec,
    StreamState,
    WorkQueue,
)
from .subjects import matches
from .transport import Transport

DUPLICATE_SECONDS = 120.0
MAX_WAIT = 5.0


@dataclass(slots=True)
class _Stored:
    entry: Entry
    stored: float
    expires: float | None
    goes: float | None

    def seen(self) -> Entry:
        expired = self.expires is not None and self.expires <= time.monotonic()
        return replace(self.entry, expired=expired)


class _Stream:
    """The entries of one stream."""

    def __init__(self, spec: StreamSpec) -> None:
        self.spec = spec
        self.made = uuid4().hex
        self.last = 0
        self.queues: dict[str, _MemoryQueue] = {}
        self._entries: dict[int, _Stored] = {}
        self._ids: dict[str, tuple[float, int]] = {}
        self.changed = anyio.Event()

    def entries(self, subject: str = ">", after: int = 0) -> list[_Stored]:
        """Return the entries that are there, oldest first."""
        now = time.monotonic()
        oldest = now - self.spec.max_age if self.spec.max_age else 0.0
        self.remove(
            [
                number
                for number, stored in self._entries.items()
                if stored.stored <= oldest or (stored.goes is not None and stored.goes <= now)
            ]
        )
        return [
            stored
            for number, stored in self._entries.items()
            if number > after and matches(subject, stored.entry.subject)
        ]

    def known(self, msg_id: str) -> int | None:
        """Return where an entry of this id was stored within the window of duplicates."""
        found = self._ids.get(msg_id) if msg_id else None
        if found is None or found[0] + DUPLICATE_SECONDS < time.monotonic():
            return None
        return found[1]

    def last_on(self, subject: str) -> Entry | None:
        found = self.entries(subject)
        return found[-1].seen() if found else None

    def refuse_overflow(self, size: int) -> None:
        """Raise `Overloaded` where new entries of a size in bytes do not fit and old ones may not go."""
        held = sum(len(stored.entry.payload) for stored in self.entries())
        if self.spec.discard == "new" and held + size > self.spec.max_bytes:
            raise Overloaded(f"the stream {self.spec.name} is full")

    def add(
        self, subject: str, payload: bytes, msg_id: str, expires: float | None = None, ttl: int = 0
    ) -> int:
        now = time.monotonic()
        self.last += 1
        entry = Entry(subject, self.last, payload, msg_id, at=time.time())
        self._entries[self.last] = _Stored(
            entry, now, None if expires is None else now + expires, now + ttl if ttl else None
        )
        self._ids = {
            key: value for key, value in self._ids.items() if value[0] + DUPLICATE_SECONDS >= now
        }
        if msg_id:
            self._ids[msg_id] = (now, self.last)
        if self.spec.max_per_subject:
            same = self.entries(subject)
            self.remove([one.entry.sequence for one in same[: -self.spec.max_per_subject]])
        while sum(len(one.entry.payload) for one in self._entries.values()) > self.spec.max_bytes:
            self.remove([next(iter(self._entries))])
        self.changed.set()
        self.changed = anyio.Event()
        return self.last

    def remove(self, sequences: list[int]) -> None:
        for sequence in sequences:
            self._entries.pop(sequence, None)

    def state(self) -> StreamState:
        held = self.entries()
        first = held[0].entry.sequence if held else self.last + 1
        size = sum(len(stored.entry.payload) for stored in held)
        return StreamState(first, self.last, len(held), size, self.made)

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until an entry is added, or for so long."""
        with anyio.move_on_after(seconds):
            await self.changed.wait()


class MemoryStreams:
    """`Streams` in memory."""

    def __init__(self, transport: Transport | None) -> None:
        self._streams: dict[str, _Stream] = {}
        self._transport = transport

    async def ensure(self, spec: StreamSpec) -> None:
        """Create or update a stream; see `Streams.ensure`."""
        for other in self._streams.values():
            if other.spec.name != spec.name and _overlap(other.spec, spec):
                raise Conflict(f"the streams {spec.name} and {other.spec.name} overlap")
        held = self._streams.setdefault(spec.name, _Stream(spec))
        if (held.spec.storage, held.spec.work_queue) != (spec.storage, spec.work_queue):
            raise Conflict(f"the stream {spec.name} exists and is of another kind")
        held.spec = spec

    async def append(
        self,
        subject: str,
        payload: bytes,
        *,
        msg_id: str,
        expires: float | None = None,
        expected_last: int | None = None,
    ) -> Appended:
        """Store an entry; see `Streams.append`."""
        stream = self._taking(subject)
        if expected_last is not None:
            last = stream.last_on(subject)
            if (last.sequence if last else 0) != expected_last:
                if last is not None and last.msg_id == msg_id:
                    return Appended(last.sequence, duplicate=True)
                raise Conflict(f"{expected_last} is not the last entry on {subject}")
        known = stream.known(msg_id)
        if known is not None:
            return Appended(known, duplicate=True)
        stream.refuse_overflow(len(payload))
        sequence = stream.add(subject, payload, msg_id, expires)
        await self._publish_again(stream.spec, subject, payload)
        return Appended(sequence)

    async def post(self, subject: str, payload: bytes) -> None:
        """Store an entry without waiting; see `Streams.post`."""
        with suppress(NotFound, Overloaded):
            await self.append(subject, payload, msg_id="")

    async def append_batch(
        self, entries: Sequence[NewEntry], *, expected_last: int | None = None
    ) -> int:
        """Store entries whole or not at all; see `Streams.append_batch`."""
        if not 1 <= len(entries) <= 1000:
            raise InvalidRequest(f"a batch has 1 to 1000 entries, not {len(entries)}")
        stream = self._taking(entries[0].subject)
        if not stream.spec.atomic or any(
            self._taking(entry.subject) is not stream for entry in entries
        ):
            raise Unsupported("a batch goes to one stream, which is atomic")
        stale = expected_last is not None and stream.last != expected_last
        if stale or any(stream.known(entry.msg_id) for entry in entries):
            last = stream.last_on(entries[-1].subject)
            if last is not None and last.msg_id == entries[-1].msg_id:
                return last.sequence
            raise Conflict(f"{stream.spec.name} is not at {expected_last}, or has a part of this")
        if any(entry.ttl for entry in entries) and not stream.spec.expiring:
            raise Unsupported(f"entries of the stream {stream.spec.name} have no ttl")
        stream.refuse_overflow(sum(len(entry.payload) for entry in entries))
        for entry in entries:
            stream.add(entry.subject, entry.payload, entry.msg_id, ttl=entry.ttl)
        sequence = stream.last
        for entry in entries:
            await self._publish_again(stream.spec, entry.subject, entry.payload)
        return sequence

    async def last(self, stream: str, subject: str) -> Entry | None:
        """Return the last entry on a subject; see `Streams.last`."""
        return self._named(stream).last_on(subject)

    async def first(self, stream: str, subject: str, *, after: int = 0) -> Entry | None:
        """Return the first entry on a subject after a sequence; see `Streams.first`."""
        found = self._named(stream).entries(subject, after)
        return found[0].seen() if found else None

    async def state(self, stream: str) -> StreamState:
        """Return the extent of a stream; see `Streams.state`."""
        return self._named(stream).state()

    async def purge(self, stream: str, subject: str, *, before: int | None = None) -> None:
        """Remove entries on a subject; see `Streams.purge`."""
        held = self._named(stream)
        found = [stored.entry.sequence for stored in held.entries(subject)]
        held.remove([number for number in found if before is None or number < before])

    @asynccontextmanager
    async def read(
        self, stream: str, subject: str = ">", *, after: int = 0
    ) -> AsyncIterator[AsyncIterator[Entry]]:
        """Read entries, then live ones; see `Streams.read`."""
        held = self._readable(stream)

        async def entries() -> AsyncIterator[Entry]:
            last = after
            while True:
                found = held.entries(subject, last)
                for stored in found:
                    last = stored.entry.sequence
                    yield stored.seen()
                if not found:
                    await held.wait()

        yield entries()

    @asynccontextmanager
    async def replay(
        self, stream: str, subject: str = ">", *, after: int = 0
    ) -> AsyncIterator[AsyncIterator[Entry]]:
        """Read the entries that stand there now; see `Streams.replay`."""
        found = self._readable(stream).entries(subject, after)

        async def entries() -> AsyncIterator[Entry]:
            for stored in found:
                yield stored.seen()

        yield entries()

    async def work(
        self,
        stream: str,
        consumer: str,
        *,
        subject: str = ">",
        after: int = 0,
        ack_wait: float = 30.0,
    ) -> WorkQueue:
        """Return a durable consumer; see `Streams.work`."""
        held = self._named(stream)
        queue = held.queues.get(consumer)
        if queue is None:
            queue = held.queues[consumer] = _MemoryQueue(held, subject, after, ack_wait)
        queue.ack_wait = ack_wait
        return queue

    async def end_work(self, stream: str, consumer: str) -> None:
        """Remove a durable consumer; see `Streams.end_work`."""
        queue = self._named(stream).queues.pop(consumer, None)
        if queue is not None:
            queue.end()

    def _named(self, name: str) -> _Stream:
        if name not in self._streams:
            raise NotFound(f"there is no stream {name}")
        return self._streams[name]

    def _readable(self, name: str) -> _Stream:
        held = self._named(name)
        if held.spec.work_queue:
            raise Unsupported(f"the stream {name} is a work queue")
        return held

    def _taking(self, subject: str) -> _Stream:
        for held in self._streams.values():
            if any(matches(pattern, subject) for pattern in held.spec.subjects):
                return held
        raise NotFound(f"no stream takes {subject}")

    async def _publish_again(self, spec: StreamSpec, subject: str, payload: bytes) -> None:
        if self._transport is None or spec.republish is None:
            return
        source, target = spec.republish
        if matches(source, subject):
            # From `a.>` to `b.>`, the one kind of mapping that is in use.
            tail = subject.removeprefix(source.removesuffix(">"))
            await self._transport.publish(target.removesuffix(">") + tail, payload)


def _overlap(one: StreamSpec, other: StreamSpec) -> bool:
    return any(
        matches(mine, theirs) or matches(theirs, mine)
        for mine in one.subjects
        for theirs in other.subjects
    )


class _MemoryQueue:
    """A durable consumer: which entries are out, until when, and how often each was delivered."""

    def __init__(self, stream: _Stream, subject: str, after: int, ack_wait: float) -> None:
        self.ack_wait = ack_wait
        self._stream = stream
        self._subject = subject
        self._next = after
        self._ended = False
        self._attempts: dict[int, int] = {}
        self._due: dict[int, float] = {}
        self._given_back = anyio.Event()

    async def fetch(self, most: int, *, wait: float = 1.0) -> list[Delivery]:
        """Return entries; see `WorkQueue.fetch`."""
        end = time.monotonic() + min(wait, MAX_WAIT)
        while True:
            if self._ended:
                raise BusError("the consumer was removed")
            found = self._take(most)
            now = time.monotonic()
            if found or now >= end:
                return found
            # Whichever comes first: an entry, one that is given back, one whose time runs out.
            pause = max(0.0, min([end, *self._due.values()]) - now)
            # Those of now: what comes before the tasks have begun is noticed, too.
            events = self._stream.changed, self._given_back
            async with anyio.create_task_group() as tasks:
                for event in events:
                    tasks.start_soon(_first, event, tasks.cancel_scope)
                with anyio.move_on_after(pause):
                    await anyio.sleep_forever()
                tasks.cancel_scope.cancel()

    def _take(self, most: int) -> list[Delivery]:
        now = time.monotonic()
        found: list[Delivery] = []
        for stored in self._stream.entries(self._subject):
            sequence = stored.entry.sequence
            if len(found) == most:
                break
            if sequence <= self._next and self._due.get(sequence, now + 1) > now:
                continue
            self._next = max(self._next, sequence)
            self._due[sequence] = now + self.ack_wait
            self._attempts[sequence] = self._attempts.get(sequence, 0) + 1
            found.append(_MemoryDelivery(self, stored.seen(), self._attempts[sequence]))
        return found

    def end(self) -> None:
        """Let those who wait know that the consumer is gone."""
        self._ended = True
        self._given_back.set()

    def settle(self, sequence: int) -> None:
        """An entry is done with."""
        self._due.pop(sequence, None)
        self._attempts.pop(sequence, None)
        if self._stream.spec.work_queue:
            self._stream.remove([sequence])

    def postpone(self, sequence: int, seconds: float) -> None:
        """Deliver an entry that is out again after so long."""
        if sequence in self._due:
            self._due[sequence] = time.monotonic() + seconds
            self._given_back.set()
            self._given_back = anyio.Event()


async def _first(event: anyio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


@dataclass(frozen=True, slots=True)
class _MemoryDelivery:
    queue: _MemoryQueue
    entry: Entry
    attempt: int

    async def ack(self) -> None:
        self.queue.settle(self.entry.sequence)

    async def nak(self, delay: float = 0.0) -> None:
        self.queue.postpone(self.entry.sequence, delay)

    async def term(self) -> None:
        self.queue.settle(self.entry.sequence)

    async def in_progress(self) -> None:
        self.queue.postpone(self.entry.sequence, self.queue.ack_wait)
