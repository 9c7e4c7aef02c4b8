"""What is durable, on NATS JetStream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import nats.js.errors
from nats.aio.client import Client
from nats.js.api import (
    DiscardPolicy,
    RawStreamMsg,
    RePublish,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)

from ..schemas import BusError, Conflict, InvalidRequest, NotFound
from .buckets import JetStreamKeyValue, JetStreamObjects, key_value_config, objects_config
from .consumers import Reader, entry_of, work_queue
from .durable import (
    Appended,
    Entry,
    KeyValue,
    NewEntry,
    Objects,
    StreamSpec,
    StreamState,
    WorkQueue,
)
from .jsapi import (
    DUPLICATE_IN_BATCH,
    NO_MESSAGE,
    STREAM_EXISTS,
    TIMEOUT,
    WRONG_LAST_SEQUENCE,
    JetStreamApi,
    check_reply,
    headers_for,
    read_headers,
    translated,
)

DUPLICATE_SECONDS = 120.0
MAX_BATCH = 1000
MAX_CONSUMERS = 1 << 16
EXPECTED_LAST = "Nats-Expected-Last-Sequence"
EXPECTED_LAST_ON_SUBJECT = "Nats-Expected-Last-Subject-Sequence"


class JetStreamStorage:
    """A `Storage` on one NATS connection, which it does not own."""

    def __init__(self, client: Client) -> None:
        self._api = JetStreamApi(client)
        self._streams = JetStreamStreams(self._api)

    @property
    def streams(self) -> JetStreamStreams:
        """Streams of entries."""
        return self._streams

    async def key_value(self, bucket: str, *, ttl: float = 0.0) -> KeyValue:
        """Return a bucket; see `Storage.key_value`.

        Raises:
            BusError: no answer, or ``ttl`` is under a second, which NATS does not measure.
        """
        await ensure_stream(self._api, key_value_config(bucket, ttl))
        return JetStreamKeyValue(self._api, bucket)

    async def objects(self, bucket: str, *, ttl: float = 0.0, max_bytes: int = 1 << 30) -> Objects:
        """Return an object store; see `Storage.objects`."""
        await ensure_stream(self._api, objects_config(bucket, ttl, max_bytes))
        return JetStreamObjects(self._api, bucket)


async def ensure_stream(api: JetStreamApi, config: StreamConfig) -> None:
    """Create a stream, or update it.

    Raises:
        Conflict: a subject of it is another stream's, or what it is for cannot be changed into the config.
        Overloaded: the server has no room for a stream of this size.
    """
    with translated(f"make the stream {config.name}"):
        try:
            await api.js.add_stream(config)
        except nats.js.errors.APIError as error:
            if error.err_code != STREAM_EXISTS:
                raise
            await api.js.update_stream(config)


def stream_config(spec: StreamSpec) -> StreamConfig:
    """Return a spec in the terms of JetStream."""
    window = min(DUPLICATE_SECONDS, spec.max_age) if spec.max_age else DUPLICATE_SECONDS
    source = spec.republish
    return StreamConfig(
        name=spec.name,
        subjects=list(spec.subjects),
        storage=StorageType(spec.storage),
        retention=RetentionPolicy.WORK_QUEUE if spec.work_queue else RetentionPolicy.LIMITS,
        discard=DiscardPolicy(spec.discard),
        max_bytes=spec.max_bytes,
        max_age=spec.max_age,
        max_msgs_per_subject=spec.max_per_subject or -1,
        # Each reader is one; the server's default is a thousand.
        max_consumers=MAX_CONSUMERS,
        duplicate_window=window,
        allow_atomic=spec.atomic,
        allow_msg_ttl=spec.expiring,
        republish=RePublish(src=source[0], dest=source[1]) if source else None,
    )


class JetStreamStreams:
    """`Streams` on JetStream."""

    def __init__(self, api: JetStreamApi) -> None:
        self._api = api

    async def ensure(self, spec: StreamSpec) -> None:
        """Create or update a stream; see `Streams.ensure`."""
        await ensure_stream(self._api, stream_config(spec))

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
        headers = headers_for(msg_id, expires)
        if expected_last is not None:
            headers[EXPECTED_LAST_ON_SUBJECT] = str(expected_last)
        try:
            stored = await self._api.publish(subject, payload, headers)
        except Conflict as error:
            # The server checks the fence before the id: an append that landed unanswered is refused when retried.
            if error.details.get("jetstream_error") not in WRONG_LAST_SEQUENCE:
                raise
            with translated(f"find the stream of {subject!r}"):
                stream = await self._api.js.find_stream_name_by_subject(subject)
            last = await self.last(stream, subject)
            if last is None or last.msg_id != msg_id:
                raise
            return Appended(last.sequence, duplicate=True)
        return Appended(stored.seq, duplicate=bool(stored.duplicate))

    async def post(self, subject: str, payload: bytes) -> None:
        """Store an entry without waiting for the answer; see `Streams.post`."""
        self._api.refuse_excess(subject, payload, None)
        with translated(f"post on {subject!r}"):
            await self._api.client.publish(subject, payload)

    async def append_batch(
        self, entries: Sequence[NewEntry], *, expected_last: int | None = None
    ) -> int:
        """Store entries whole or not at all; see `Streams.append_batch`.

        A batch has at most a thousand entries.
        """
        if not 1 <= len(entries) <= MAX_BATCH:
            raise InvalidRequest(f"a batch has 1 to {MAX_BATCH} entries, not {len(entries)}")
        try:
            return await self._publish_batch(entries, expected_last)
        except Conflict as error:
            known = WRONG_LAST_SEQUENCE | {DUPLICATE_IN_BATCH}
            if error.details.get("jetstream_error") not in known:
                raise
            final = entries[-1]
            with translated(f"find the stream of {final.subject!r}"):
                stream = await self._api.js.find_stream_name_by_subject(final.subject)
            last = await self.last(stream, final.subject)
            if last is None or last.msg_id != final.msg_id:
                raise
            return last.sequence

    async def _publish_batch(self, entries: Sequence[NewEntry], expected_last: int | None) -> int:
        batch = uuid4().hex
        client = self._api.client
        told: dict[str, Any] = {}
        with translated(f"store a batch on {entries[0].subject!r}"):
            for number, entry in enumerate(entries, 1):
                headers = headers_for(entry.msg_id, ttl=entry.ttl)
                headers |= {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(number)}
                if number == 1 and expected_last is not None:
                    headers[EXPECTED_LAST] = str(expected_last)
                # A batch that is left unfinished leaves nothing.
                self._api.refuse_excess(entry.subject, entry.payload, headers)
                if number == len(entries):
                    headers["Nats-Batch-Commit"] = "1"
                elif number > 1:
                    # What is wrong with it, the commit will tell.
                    await client.publish(entry.subject, entry.payload, headers=headers)
                    continue
                reply = await client.request(
                    entry.subject, entry.payload, timeout=TIMEOUT, headers=headers
                )
                told = check_reply(reply.data)
        if "seq" not in told:
            raise BusError(f"the batch on {entries[0].subject!r} was not confirmed")
        return int(told["seq"])

    async def last(self, stream: str, subject: str) -> Entry | None:
        """Return the last entry on a subject; see `Streams.last`."""
        with translated(f"read the stream {stream}"):
            try:
                raw = await self._api.js.get_last_msg(stream, subject)
            except nats.js.errors.NotFoundError as error:
                if error.err_code == NO_MESSAGE:
                    return None
                raise
        return _stored(raw, subject)

    async def first(self, stream: str, subject: str, *, after: int = 0) -> Entry | None:
        """Return the first entry on a subject after a sequence; see `Streams.first`."""
        with translated(f"read the stream {stream}"):
            try:
                raw = await self._api.js.get_msg(stream, seq=after + 1, subject=subject, next=True)
            except nats.js.errors.NotFoundError as error:
                if error.err_code == NO_MESSAGE:
                    return None
                raise
        return _stored(raw, subject)

    async def state(self, stream: str) -> StreamState:
        """Return the extent of a stream; see `Streams.state`."""
        with translated(f"look at the stream {stream}"):
            info = await self._api.js.stream_info(stream)
        state = info.state
        return StreamState(
            state.first_seq, state.last_seq, state.messages, state.bytes, str(info.created)
        )

    async def purge(self, stream: str, subject: str, *, before: int | None = None) -> None:
        """Remove entries on a subject; see `Streams.purge`."""
        if before == 0:  # To the server it would mean all.
            return
        with translated(f"purge the stream {stream}"):
            await self._api.js.purge_stream(stream, subject=subject, seq=before)

    @asynccontextmanager
    async def read(
        self, stream: str, subject: str = ">", *, after: int = 0
    ) -> AsyncIterator[AsyncIterator[Entry]]:
        """Read entries, then live ones; see `Streams.read`."""
        reader = Reader(self._api, stream, subject, after)
        await reader.open()
        try:
            async with aclosing(reader.live()) as messages:
                yield (entry_of(msg) async for msg in messages)
        finally:
            await reader.close()

    @asynccontextmanager
    async def replay(
        self, stream: str, subject: str = ">", *, after: int = 0
    ) -> AsyncIterator[AsyncIterator[Entry]]:
        """Read the entries that stand there now; see `Streams.replay`."""
        reader = Reader(self._api, stream, subject, after)
        await reader.open()
        try:
            end = (await self.state(stream)).last
            async with aclosing(reader.standing(end)) as messages:
                yield (entry_of(msg) async for msg in messages)
        finally:
            await reader.close()

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
        return await work_queue(self._api, stream, consumer, subject, after, ack_wait)

    async def end_work(self, stream: str, consumer: str) -> None:
        """Remove a durable consumer; see `Streams.end_work`."""
        with suppress(NotFound), translated(f"end the work on the stream {stream}"):
            await self._api.js.delete_consumer(stream, consumer)


def _stored(raw: RawStreamMsg, subject: str) -> Entry:
    read = read_headers(raw.headers)
    at = raw.time.timestamp() if raw.time is not None else 0.0
    return Entry(raw.subject or subject, raw.seq or 0, raw.data or b"", *read, at)
