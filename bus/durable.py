"""What is stored on the bus and survives: streams, work queues, keys and values, objects.

The guarantees are in the types: `ayllu.bus.transport` is live and at most once, everything here is replayable and at
least once. Two implementations (`memory`, for tests and embedding, and `jetstream`) share one contract suite.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """A stream: which subjects it keeps, how, and how much.

    Attributes:
        name: ``[A-Z_]+``.
        subjects: what it captures; no two streams may overlap.
        storage: ``file`` survives the server; ``memory`` is for what may be lost, token deltas above all.
        work_queue: an entry goes when it is acknowledged.
        max_bytes: the limit of its size.
        max_age: seconds after which an entry goes; 0 keeps it.
        max_per_subject: how many entries of one subject are kept; 0 keeps all, 1 is compaction.
        discard: at the limit, drop the ``old`` (event streams never refuse new events) or refuse the ``new``.
        atomic: whether batches may be appended whole or not at all.
        expiring: whether entries may have a ``ttl`` of their own.
        republish: a pair of subject patterns; what was stored is published again, fenced, under the second one.
    """

    name: str
    subjects: tuple[str, ...]
    storage: Literal["file", "memory"] = "file"
    work_queue: bool = False
    max_bytes: int = 1 << 30
    max_age: float = 0.0
    max_per_subject: int = 0
    discard: Literal["old", "new"] = "old"
    atomic: bool = False
    expiring: bool = False
    republish: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """What a stream keeps.

    Attributes:
        subject: where it was published.
        sequence: counts from 1 through the whole stream.
        payload: what was published.
        msg_id: the publisher's.
        expired: whether its time is over.
        reply_to: where the publisher wants to hear what comes of it (the header ``Ayllu-Reply-To``: JetStream keeps no reply
            subjects, it answers there itself that the message is stored).
        at: when it was stored, in seconds since the epoch; 0 where that is not known.
    """

    subject: str
    sequence: int
    payload: bytes
    msg_id: str
    expired: bool = False
    reply_to: str = ""
    at: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Appended:
    """Where an entry stands; ``duplicate`` when it stood there already under the same ``msg_id``."""

    sequence: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class NewEntry:
    """An entry of a batch; with a ``ttl`` it goes after so many seconds (at least 1; the stream's spec says ``expiring``)."""

    subject: str
    payload: bytes
    msg_id: str
    ttl: int = 0


@dataclass(frozen=True, slots=True)
class StreamState:
    """The extent of a stream; ``made`` changes when it is made anew, as streams in memory are after the server's end."""

    first: int
    last: int
    count: int
    bytes: int
    made: str = ""


class Delivery(Protocol):
    """An entry of a work queue in the hands of one worker, until it acknowledges it or its time runs out."""

    @property
    def entry(self) -> Entry:
        """The entry."""
        ...

    @property
    def attempt(self) -> int:
        """How often it was delivered, from 1; deliveries are unlimited, so whoever works must count."""
        ...

    async def ack(self) -> None:
        """Done: the entry goes. Returns when the bus has confirmed it."""
        ...

    async def nak(self, delay: float = 0.0) -> None:
        """Not now: deliver it again after ``delay`` seconds."""
        ...

    async def term(self) -> None:
        """Never: the entry goes without having been done."""
        ...

    async def in_progress(self) -> None:
        """Still at it: the time starts anew."""
        ...


class WorkQueue(Protocol):
    """A durable consumer that many workers share."""

    async def fetch(self, most: int, *, wait: float = 1.0) -> list[Delivery]:
        """Return up to ``most`` entries, or none after ``wait`` seconds (at most 5, so that an outage is noticed).

        Cancelling it may strand an entry until its time runs out; it is then delivered again.
        """
        ...


class Streams(Protocol):
    """Streams of entries."""

    async def ensure(self, spec: StreamSpec) -> None:
        """Create a stream, or update it to the spec.

        Raises:
            Conflict: another stream has an overlapping subject.
        """
        ...

    async def append(
        self,
        subject: str,
        payload: bytes,
        *,
        msg_id: str,
        expires: float | None = None,
        expected_last: int | None = None,
    ) -> Appended:
        """Store an entry; returns when it is stored.

        Args:
            subject: a subject of some stream.
            payload: the entry.
            msg_id: deterministic: an append that is retried under the same id is stored once (within two minutes).
            expires: seconds from now after which readers see the entry as ``expired``; for commands.
            expected_last: fence: the sequence of the last entry on this subject (0: none).

        Raises:
            Conflict: the fence did not hold, and the last entry on the subject is not this very one.
            NotFound: no stream takes the subject.
            Overloaded: the stream is full and refuses new entries.
            BusError: no answer; the append may have landed, retry under the same id.
        """
        ...

    async def post(self, subject: str, payload: bytes) -> None:
        """Store an entry without waiting until it is: for what may be lost, token deltas above all.

        Raises:
            BusError: the bus is gone.
        """
        ...

    async def append_batch(
        self, entries: Sequence[NewEntry], *, expected_last: int | None = None
    ) -> int:
        """Store entries of one stream whole or not at all, and return the last one's sequence.

        Args:
            entries: at least one; the stream's spec says ``atomic``.
            expected_last: fence: the last sequence of the whole stream.

        Raises:
            Conflict: the fence did not hold.
        """
        ...

    async def last(self, stream: str, subject: str) -> Entry | None:
        """Return the last entry on a subject."""
        ...

    async def first(self, stream: str, subject: str, *, after: int = 0) -> Entry | None:
        """Return the first entry on a subject (wildcards allowed) after a sequence."""
        ...

    async def state(self, stream: str) -> StreamState:
        """Return the extent of a stream."""
        ...

    async def purge(self, stream: str, subject: str, *, before: int | None = None) -> None:
        """Remove the entries on a subject (wildcards allowed); with ``before``, only those of lower sequences."""
        ...

    def read(
        self, stream: str, subject: str = ">", *, after: int = 0
    ) -> AbstractAsyncContextManager[AsyncIterator[Entry]]:
        """Read the entries on a subject (wildcards allowed) after a sequence, then live ones, without gap or double.

        A broker restart or a slow reader loses nothing: reading goes on after the last entry that was handed out.
        """
        ...

    def replay(
        self, stream: str, subject: str = ">", *, after: int = 0
    ) -> AbstractAsyncContextManager[AsyncIterator[Entry]]:
        """Read the entries that stand on a subject now, and end."""
        ...

    async def work(
        self,
        stream: str,
        consumer: str,
        *,
        subject: str = ">",
        after: int = 0,
        ack_wait: float = 30.0,
    ) -> WorkQueue:
        """Return the durable consumer of a stream, created where it is missing.

        Args:
            stream: the stream.
            consumer: its name; all who name it share it.
            subject: which entries it gets (wildcards allowed).
            after: the sequence after which they stand; it stays what it was when the consumer was created.
            ack_wait: seconds after which what was not acknowledged is delivered again.
        """
        ...

    async def end_work(self, stream: str, consumer: str) -> None:
        """Remove a durable consumer, if there is one; what waits for it gets errors, what it has not done stays in the stream."""
        ...


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A value and its revision; revisions count through the whole bucket."""

    key: str
    value: bytes
    revision: int


class KeyValue(Protocol):
    """A bucket of keys and values with compare-and-set; keys are any text."""

    async def get(self, key: str) -> KeyEntry | None:
        """Return the value of a key."""
        ...

    async def put(self, key: str, value: bytes) -> int:
        """Set a key whatever it was, and return the revision."""
        ...

    async def create(self, key: str, value: bytes) -> int:
        """Set a key that has no value.

        Raises:
            Conflict: it has one.
        """
        ...

    async def update(self, key: str, value: bytes, *, revision: int) -> int:
        """Set a key that is at a revision.

        Raises:
            Conflict: it is not.
        """
        ...

    async def delete(self, key: str, *, revision: int | None = None) -> None:
        """Remove a key; with a revision, only if it is at it.

        Raises:
            Conflict: it is not.
        """
        ...

    async def keys(self) -> list[str]:
        """Return all keys that have a value, sorted."""
        ...


class Objects(Protocol):
    """A store for what is too large for a message."""

    async def put(self, name: str, data: bytes) -> None:
        """Store an object under a name, which is any text; it replaces one of that name."""
        ...

    async def get(self, name: str) -> bytes:
        """Return an object, checked against its digest.

        Raises:
            NotFound: there is none, or it has expired.
        """
        ...

    async def delete(self, name: str) -> None:
        """Remove an object, if there is one."""
        ...

    async def names(self) -> list[str]:
        """Return the names of all objects, sorted."""
        ...


class Storage(Protocol):
    """All that is durable on a bus."""

    @property
    def streams(self) -> Streams:
        """Streams of entries."""
        ...

    async def key_value(self, bucket: str, *, ttl: float = 0.0) -> KeyValue:
        """Return a bucket, created where it is missing; with ``ttl``, values expire after so many seconds."""
        ...

    async def objects(self, bucket: str, *, ttl: float = 0.0, max_bytes: int = 1 << 30) -> Objects:
        """Return an object store, created where it is missing; with ``ttl``, objects expire."""
        ...
