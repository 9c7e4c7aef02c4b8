"""The streams of a bus as the nats-server tells of them: their extents, what waits for their consumers, and on which subjects.

For an operator's tools; it asks JetStream's own API, which `ayllu.bus.durable` does not show, one question for many streams.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar

import anyio
import msgspec
from msgspec import Meta

from ..bus.transport import Message, Transport
from ..schemas import BusError

PAGES = 4
"""How many pages of 256 streams are looked at."""
MOST_CONSUMERS = 64
"""A stream with more consumers has those of many readers, who have nothing that waits."""
ASK_SECONDS = 3.0

T = TypeVar("T")
Count = Annotated[int, Meta(ge=0)]


class _Config(msgspec.Struct):
    name: str
    max_bytes: int = -1


class _State(msgspec.Struct):
    messages: Count = 0
    bytes: Count = 0
    last_seq: Count = 0
    consumer_count: Count = 0
    num_subjects: Count = 0
    subjects: dict[str, Count] | None = None


class _Error(msgspec.Struct):
    description: str = ""


class _Stream(msgspec.Struct):
    config: _Config
    state: _State


class _Streams(msgspec.Struct):
    total: Count = 0
    streams: list[_Stream] | None = None
    error: _Error | None = None


class _StreamInfo(msgspec.Struct):
    state: _State = msgspec.field(default_factory=_State)
    error: _Error | None = None


class _Durable(msgspec.Struct):
    durable_name: str = ""


class _Consumer(msgspec.Struct):
    name: str
    config: _Durable
    num_pending: Count = 0
    num_ack_pending: Count = 0


class _Consumers(msgspec.Struct):
    consumers: list[_Consumer] | None = None
    error: _Error | None = None


class StreamFacts(msgspec.Struct, frozen=True):
    """A stream at a moment.

    Attributes:
        name: its name.
        entries: how many it keeps.
        bytes: their size.
        limit: the most bytes that it keeps; -1 where it has no limit.
        last: the sequence of the last entry that was ever stored.
        consumers: how many there are.
        subjects: on how many subjects entries stand.
    """

    name: str
    entries: int
    bytes: int
    limit: int
    last: int
    consumers: int = 0
    subjects: int = 0


class ConsumerFacts(msgspec.Struct, frozen=True):
    """What a durable consumer of a stream has before it: entries that nobody has, and those that somebody works on."""

    stream: str
    name: str
    pending: int
    unacknowledged: int


class JetStreamFacts:
    """Asks the nats-server; see `jetstream_facts`."""

    def __init__(self, transport: Transport, inbox: str) -> None:
        self._transport = transport
        self._inbox = inbox
        self._asked = 0
        self._answers: dict[str, bytes | None] = {}
        self._waiting: dict[str, anyio.Event] = {}

    def on_answer(self, message: Message) -> None:
        """Take an answer of the server's."""
        waiting = self._waiting.get(message.subject)
        if waiting is not None:
            self._answers[message.subject] = None if message.no_responders else message.payload
            waiting.set()

    async def _ask(self, what: str, question: object, type_: type[T]) -> T:
        self._asked += 1
        reply = f"{self._inbox}.{self._asked}"
        answered = self._waiting[reply] = anyio.Event()
        try:
            payload = msgspec.json.encode(question)
            await self._transport.publish(f"$JS.API.{what}", payload, reply=reply)
            with anyio.fail_after(ASK_SECONDS):
                await answered.wait()
            answer = self._answers.pop(reply)
            if answer is None:
                raise BusError("the bus has no JetStream at present")
            return msgspec.json.decode(answer, type=type_)
        except TimeoutError as error:
            raise BusError(f"no answer from the bus in {ASK_SECONDS:.0f} s") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BusError(f"the bus answered {what} unreadably: {error}") from error
        finally:
            del self._waiting[reply]
            self._answers.pop(reply, None)

    async def streams(self) -> list[StreamFacts]:
        """Return the streams, by name; no more than some pages of them.

        Raises:
            BusError: the bus does not tell.
        """
        found: list[StreamFacts] = []
        for _ in range(PAGES):
            page = await self._ask("STREAM.LIST", {"offset": len(found)}, _Streams)
            if page.error is not None:
                raise BusError(f"the streams cannot be listed: {page.error.description}")
            found += [_facts(stream) for stream in page.streams or ()]
            if not page.streams or len(found) >= page.total:
                break
        return sorted(found, key=lambda stream: stream.name)

    async def consumers(self, stream: StreamFacts) -> list[ConsumerFacts]:
        """Return the durable consumers of a stream; none where it is gone, or has those of many readers.

        Raises:
            BusError: the bus does not tell.
        """
        if not 0 < stream.consumers <= MOST_CONSUMERS:
            return []
        told = await self._ask(f"CONSUMER.LIST.{stream.name}", {}, _Consumers)
        return [
            ConsumerFacts(stream.name, one.name, one.num_pending, one.num_ack_pending)
            for one in told.consumers or ()
            if one.config.durable_name
        ]

    async def subjects(self, stream: str, pattern: str) -> dict[str, int]:
        """Return how many entries stand on each subject of a pattern; none where the stream is gone.

        Raises:
            BusError: the bus does not tell.
        """
        told = await self._ask(f"STREAM.INFO.{stream}", {"subjects_filter": pattern}, _StreamInfo)
        return told.state.subjects or {}


def _facts(stream: _Stream) -> StreamFacts:
    state, config = stream.state, stream.config
    return StreamFacts(
        config.name,
        state.messages,
        state.bytes,
        config.max_bytes,
        state.last_seq,
        state.consumer_count,
        state.num_subjects,
    )


@asynccontextmanager
async def jetstream_facts(transport: Transport) -> AsyncIterator[JetStreamFacts]:
    """Open what asks the nats-server about its streams."""
    inbox = transport.inbox()
    facts = JetStreamFacts(transport, inbox)
    async with transport.subscribe(f"{inbox}.*", facts.on_answer):
        yield facts
