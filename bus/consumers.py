"""Reading streams: pull requests, and what is built of them.

nats-py's ordered consumers lose messages when their reader is slow, and its fetch makes a task a message; so this module
asks for messages itself. A reader asks again only when it has handed out what it got, which bounds its memory, and takes
nothing on trust: a gap, a silence, a lost consumer or a restarted server all lead to a new consumer after the last
message that was handed out.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import anyio
import nats.errors
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from ..schemas import BusError, NotFound
from .durable import Delivery, Entry
from .jsapi import (
    TIMEOUT,
    JetStreamApi,
    Mailbox,
    open_mailbox,
    read_headers,
    status_of,
    translated,
)

log = logging.getLogger(__name__)

BATCH = 256
BATCH_BYTES = 4 << 20
LINGER = 5.0
HEARTBEAT = 1.0
SILENCE = 2.5
"""Seconds without a heartbeat after which a consumer is taken for lost."""
RETRY_SECONDS = 0.25
INACTIVE_SECONDS = 30.0
"""After so long without a request the server forgets a reader."""
REPLAY_PATIENCE = 30.0
"""Seconds of outage after which a replay, which somebody waits for, is given up."""
MAX_ACK_PENDING = 1 << 16
"""It counts over all workers, so it must not be what bounds them; their fetch sizes do."""
MAX_WAIT = 5.0
ANSWER_SECONDS = 2.0
NANOSECONDS = 1_000_000_000


async def request_messages(
    api: JetStreamApi,
    box: Mailbox,
    stream: str,
    consumer: str,
    *,
    batch: int,
    linger: float = 0.0,
    heartbeat: float = 0.0,
) -> None:
    """Ask a consumer for messages: for those that are there now, or those that come within ``linger`` seconds."""
    order: dict[str, object] = {"batch": batch}
    if linger:
        order["expires"] = int(linger * NANOSECONDS)
    else:
        order["no_wait"] = True
    if heartbeat:
        order["idle_heartbeat"] = int(heartbeat * NANOSECONDS)
    if batch > 1:
        # Twice: a limit below the size of one message would stop the reader for ever.
        order["max_bytes"] = max(BATCH_BYTES, 2 * api.client.max_payload)
    await api.client.publish(
        f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}",
        json.dumps(order).encode(),
        reply=box.subject,
    )


def entry_of(msg: Msg) -> Entry:
    """Return a message of a consumer as an entry."""
    read = read_headers(msg.headers)
    told = msg.metadata
    return Entry(msg.subject, told.sequence.stream, msg.data, *read, told.timestamp.timestamp())


class Reader:
    """Reads a stream once, from a sequence on."""

    def __init__(
        self, api: JetStreamApi, stream: str, subject: str, after: int, *, values: bool = True
    ) -> None:
        self._api = api
        self._stream = stream
        self._subject = subject
        self._last = after
        self._values = values
        self._consumer: str | None = None
        self._delivered = 0

    async def open(self) -> None:
        """Make the consumer.

        Raises:
            NotFound: there is no such stream.
            Unsupported: it is a work queue.
            BusError: no answer.
        """
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.NONE,
            inactive_threshold=INACTIVE_SECONDS,
            mem_storage=True,
            headers_only=None if self._values else True,
        )
        if self._last:
            config.deliver_policy = DeliverPolicy.BY_START_SEQUENCE
            config.opt_start_seq = self._last + 1
        if self._subject != ">":
            config.filter_subject = self._subject
        with translated(f"read the stream {self._stream}"):
            info = await self._api.js.add_consumer(self._stream, config, timeout=TIMEOUT)
        self._consumer = info.name
        self._delivered = 0

    async def close(self) -> None:
        """Let the server forget the reader now, if it can be told."""
        if self._consumer is None or not self._api.client.is_connected:
            return
        with anyio.move_on_after(1, shield=True):
            try:
                await self._api.js.delete_consumer(self._stream, self._consumer)
            except (nats.errors.Error, OSError, TimeoutError) as error:
                log.debug("a reader was not removed: %r", error)

    async def live(self) -> AsyncGenerator[Msg, None]:
        """Yield all messages, then those that come; it ends with an error only.

        Raises:
            NotFound: the stream was removed, or made anew.
        """
        while True:
            consumer = await self._reopened(patience=None)
            async with aclosing(self._answers(consumer, live=True)) as answers:
                async for msg in answers:
                    if status_of(msg) is None:
                        yield msg

    async def standing(self, end: int) -> AsyncGenerator[Msg, None]:
        """Yield the messages up to a sequence that are there, and end.

        Raises:
            NotFound: the stream was removed.
            BusError: an outage lasts too long.
        """
        while self._last < end:
            consumer = await self._reopened(patience=REPLAY_PATIENCE)
            async with aclosing(self._answers(consumer, live=False)) as answers:
                async for msg in answers:
                    if status_of(msg) == "404" or self._last > end:
                        return
                    if status_of(msg) is None:
                        yield msg

    async def _reopened(self, *, patience: float | None) -> str:
        """Return the consumer, made anew if it was lost."""
        started = time.monotonic()
        while self._consumer is None:
            await anyio.sleep(RETRY_SECONDS)
            try:
                await self.open()
                await self._check_position()
            except BusError as error:
                self._consumer = None
                waited = time.monotonic() - started
                if not error.retryable or (patience is not None and waited > patience):
                    raise
        return self._consumer

    async def _check_position(self) -> None:
        """Raise `NotFound` if the stream is not the one that was read, as a memory stream after a restart."""
        with translated(f"look at the stream {self._stream}"):
            state = (await self._api.js.stream_info(self._stream)).state
        if state.last_seq < self._last:
            raise NotFound(f"the stream {self._stream} was made anew, what was read is gone")

    async def _answers(self, consumer: str, *, live: bool) -> AsyncGenerator[Msg, None]:
        """Yield what answers one request: messages in order without gap or double, and the status that ends it."""
        try:
            async with open_mailbox(self._api.client) as box:
                await request_messages(
                    self._api,
                    box,
                    self._stream,
                    consumer,
                    batch=BATCH,
                    linger=LINGER if live else 0.0,
                    heartbeat=HEARTBEAT if live else 0.0,
                )
                wanted = BATCH
                while wanted:
                    msg = await box.get(SILENCE if live else TIMEOUT)
                    status = None if msg is None else status_of(msg)
                    if status == "100":
                        continue
                    if msg is None or not self._follows(msg, status):
                        self._consumer = None
                        return
                    if status is not None:
                        yield msg
                        return
                    wanted -= 1
                    position = msg.metadata.sequence.stream
                    if position > self._last:
                        self._last = position
                        yield msg
        except (nats.errors.Error, OSError) as error:
            log.debug("a reader lost the bus: %r", error)
            self._consumer = None

    def _follows(self, msg: Msg, status: str | None) -> bool:
        """Tell whether the consumer is well: the next message without a gap, or the usual end of a request."""
        if status is not None:
            return not _is_loss(msg, status)
        self._delivered += 1
        if msg.metadata.sequence.consumer == self._delivered:
            return True
        log.warning("a gap in %s after %d, reading again", self._stream, self._last)
        return False


def _is_loss(msg: Msg, status: str) -> bool:
    """Tell whether a status means that the consumer, and not just the request, has ended."""
    if status in ("100", "404", "408"):
        return False
    description = (msg.headers or {}).get("Description", "").lower()
    return not (status == "409" and ("maxbytes" in description or "batch" in description))


class JetStreamDelivery:
    """A `Delivery`."""

    __slots__ = ("_msg", "entry")

    def __init__(self, msg: Msg) -> None:
        self._msg = msg
        self.entry = entry_of(msg)

    @property
    def attempt(self) -> int:
        """How often it was delivered, from 1."""
        return int(self._msg.metadata.num_delivered)

    async def ack(self) -> None:
        """Done; see `Delivery.ack`.

        On a work queue this survives that the server is killed. On another stream the server writes the consumer's
        position a little later, and the entry may come again.
        """
        with translated("acknowledge"):
            await self._msg.ack_sync(timeout=TIMEOUT)

    async def nak(self, delay: float = 0.0) -> None:
        """Not now; see `Delivery.nak`."""
        with translated("hand back"):
            await self._msg.nak(delay or None)

    async def term(self) -> None:
        """Never; see `Delivery.term`."""
        with translated("terminate"):
            await self._msg._client.request(self._msg.reply, Msg.Ack.Term, timeout=TIMEOUT)

    async def in_progress(self) -> None:
        """Still at it; see `Delivery.in_progress`."""
        with translated("prolong"):
            await self._msg.in_progress()


class JetStreamWorkQueue:
    """A `WorkQueue`."""

    def __init__(self, api: JetStreamApi, stream: str, consumer: str) -> None:
        self._api = api
        self._stream = stream
        self._consumer = consumer

    async def fetch(self, most: int, *, wait: float = 1.0) -> list[Delivery]:
        """Return entries; see `WorkQueue.fetch`.

        Raises:
            BusError: no answer; the queue is as it was.
        """
        found: list[Msg] = []
        try:
            await self._pull(found, most)
            if not found:
                # A single one: entries that come while others are waited for would be held up.
                await self._pull(found, 1, linger=min(max(wait, 0.01), MAX_WAIT))
                if found and most > 1:
                    await self._pull(found, most - 1)
        except BaseException:
            await self._hand_back(found)
            raise
        return [JetStreamDelivery(msg) for msg in found]

    async def _pull(self, found: list[Msg], most: int, *, linger: float = 0.0) -> None:
        """Add up to ``most`` messages to those found."""
        with translated(f"fetch from {self._stream}"):
            async with open_mailbox(self._api.client) as box:
                try:
                    await request_messages(
                        self._api, box, self._stream, self._consumer, batch=most, linger=linger
                    )
                    await self._collect(found, len(found) + most, box, linger + ANSWER_SECONDS)
                except BaseException:
                    found += [msg for msg in box.rest() if status_of(msg) is None]
                    raise

    async def _collect(self, found: list[Msg], full: int, box: Mailbox, silence: float) -> None:
        while len(found) < full:
            msg = await box.get(silence)
            status = "silence" if msg is None else status_of(msg)
            if msg is not None and status is None:
                found.append(msg)
            elif found or status in ("404", "408"):
                return
            else:
                raise BusError(f"cannot fetch from {self._stream}: {status}")

    async def _hand_back(self, found: list[Msg]) -> None:
        with anyio.move_on_after(1, shield=True):
            for msg in found:
                try:
                    await msg.nak()
                except (nats.errors.Error, OSError) as error:
                    log.debug("an entry was not handed back: %r", error)


async def work_queue(  # noqa: PLR0917 - what `Streams.work` takes
    api: JetStreamApi, stream: str, consumer: str, subject: str, after: int, ack_wait: float
) -> JetStreamWorkQueue:
    """Return a durable consumer, made or changed as needed."""
    config = ConsumerConfig(
        name=consumer,
        durable_name=consumer,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait,
        # Unlimited: with a limit, an entry whose last worker died would stay in the queue for ever.
        max_deliver=-1,
        max_ack_pending=MAX_ACK_PENDING,
        filter_subject=None if subject == ">" else subject,
    )
    if after:
        config.deliver_policy = DeliverPolicy.BY_START_SEQUENCE
        config.opt_start_seq = after + 1
    with translated(f"work on the stream {stream}"):
        await api.js.add_consumer(stream, config, timeout=TIMEOUT)
    return JetStreamWorkQueue(api, stream, consumer)
