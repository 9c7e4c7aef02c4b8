"""The journal of a turn: read by anybody, written by the one executor that holds the claim."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import uuid4

import anyio
import msgspec

from ...bus.bus import Bus
from ...bus.claims import Claims
from ...bus.durable import Entry
from ...schemas import BusError, Conflict, InvalidRequest, NotFound, encode
from .records import (
    DELTAS,
    JOURNAL,
    STREAMS,
    Claimed,
    Command,
    Delta,
    JournalRecord,
    delta_subject,
    journal_subject,
)
from .timeline import DeltaOrder
from .turn import Turn

log = logging.getLogger(__name__)

BUCKET = "turns"
CLAIM_PREFIX = b'{"claim":'
PATIENCE = 120.0
"""How long an executor bears with a bus that does not answer, in seconds; another one may take over long before."""
RETRY_SECONDS = 0.25
LARGEST = 128 << 10
"""What stands in the journal itself, in bytes; larger records wait in the object store."""

_records: msgspec.json.Decoder[JournalRecord] = msgspec.json.Decoder(JournalRecord)
_commands: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)
_read_delta = msgspec.json.Decoder(Delta).decode


class Fenced(Exception):  # noqa: N818 - it says what happened
    """Another executor has claimed the turn: this one must let go of it."""


def durable_claims(bus: Bus) -> Claims:
    """Return where records and commands are kept that are too large for a message."""
    return Claims(bus.storage, limit=LARGEST, bucket=BUCKET, ttl=JOURNAL.max_age)


async def packed(claims: Claims, value: object) -> bytes:
    """Return what stands in a stream for a value."""
    payload = encode(value)
    return payload if len(payload) <= claims.limit else await claims.store(payload)


async def unpacked(claims: Claims, payload: bytes) -> bytes:
    """Return the JSON text that an entry of a stream stands for."""
    return await claims.load(payload) if payload.startswith(CLAIM_PREFIX) else payload


async def ensure_streams(bus: Bus) -> None:
    """Create the streams of agents where they are missing."""
    for spec in STREAMS:
        await bus.storage.streams.ensure(spec)


@asynccontextmanager
async def standing_records(
    bus: Bus, claims: Claims, agent: str, turn: str
) -> AsyncIterator[AsyncIterator[tuple[int, JournalRecord]]]:
    """Read the records of a turn that are there, with their sequences."""
    subject = journal_subject(agent, turn)
    async with bus.storage.streams.replay(JOURNAL.name, subject) as entries:
        yield (
            (entry.sequence, read_record(await unpacked(claims, entry.payload)))
            async for entry in entries
        )


def read_record(payload: bytes) -> JournalRecord:
    """Read a record.

    Raises:
        BusError: it is none.
    """
    try:
        return _records.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BusError(f"a journal has an entry that is none: {error}", retryable=False) from error


async def read_command(claims: Claims, entry: Entry) -> Command:
    """Read a command.

    Raises:
        InvalidRequest: it is none.
    """
    try:
        return _commands.decode(await unpacked(claims, entry.payload))
    except (msgspec.DecodeError, UnicodeDecodeError, NotFound) as error:
        raise InvalidRequest(f"it is no command: {error}") from error


def read_delta(entry: Entry) -> Delta | None:
    """Read a delta; None where it is none, since anybody may post there."""
    try:
        return _read_delta(entry.payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        log.warning("an entry of %s is no delta", entry.subject)
        return None


class Journal:
    """The journal of one turn in the hands of an executor.

    Attributes:
        turn: what has happened, by the records that were written and read.
    """

    def __init__(self, bus: Bus, claims: Claims, agent: str, turn: str) -> None:
        self.turn = Turn()
        self._bus = bus
        self._claims = claims
        self._writer = uuid4().hex  # not even two journals of one process are one writer
        self._subject = journal_subject(agent, turn)
        self._deltas = delta_subject(agent, turn)
        self._last = 0
        self._names = (agent, turn)

    async def load(self) -> None:
        """Read what stands there."""
        if await self._bus.storage.streams.first(JOURNAL.name, self._subject) is None:
            return
        async with standing_records(self._bus, self._claims, *self._names) as records:
            async for sequence, record in records:
                self.turn.apply(record)
                self._last = sequence

    async def append(self, *records: JournalRecord) -> None:
        """Write records, one after the other, and apply each that is written.

        Raises:
            Fenced: another executor wrote meanwhile.
            BusError: the bus did not answer for `PATIENCE` seconds.
        """
        for record in records:
            self._last = await self._store(await packed(self._claims, record))
            self.turn.apply(record)

    async def _store(self, payload: bytes) -> int:
        # The same id for each try: one that landed unanswered is found again.
        msg_id = f"{self._subject}:{self._last}:{self._writer}"
        give_up = anyio.current_time() + PATIENCE
        while True:
            try:
                stored = await self._bus.storage.streams.append(
                    self._subject, payload, msg_id=msg_id, expected_last=self._last
                )
            except Conflict as error:
                raise Fenced(f"{self._subject} has another writer") from error
            except BusError as error:
                if not error.retryable or anyio.current_time() > give_up:
                    raise
                log.warning("a record waits for the bus: %s", error)
                await anyio.sleep(RETRY_SECONDS)
            else:
                return stored.sequence

    async def claim(self, executor: str, at: float) -> list[str]:
        """Take the turn over from an executor that is lost, and return the deltas that it told in the open step.

        Raises:
            Fenced: another one was faster.
        """
        turn = self.turn
        streams = self._bus.storage.streams
        made = (await streams.state(DELTAS.name)).made
        epoch = turn.epoch + (made != turn.deltas)
        await self.append(
            Claimed(at=at, attempt=turn.attempt + 1, executor=executor, epoch=epoch, deltas=made)
        )
        # From this entry on, what the old attempt still posts counts for nobody.
        seal = Delta(turn.attempt, turn.index)
        stored = await streams.append(
            self._deltas, encode(seal), msg_id=f"{self._deltas}:{turn.attempt}"
        )
        order = DeltaOrder()
        texts: dict[int, str] = {}
        async with streams.replay(DELTAS.name, self._deltas) as entries:
            async for entry in entries:
                delta = read_delta(entry) if entry.sequence < stored.sequence else None
                if delta is not None:
                    for index, text in order.accepted(delta):
                        texts.setdefault(index, text)
        return list(_contiguous(texts, turn.index))

    async def post(self, index: int, texts: list[str]) -> None:
        """Tell readers tokens; they may be lost."""
        try:
            await self._bus.storage.streams.post(
                self._deltas, encode(Delta(self.turn.attempt, index, texts))
            )
        except BusError as error:
            log.debug("deltas were not told: %s", error)


def _contiguous(texts: dict[int, str], index: int) -> Iterator[str]:
    while index in texts:
        yield texts[index]
        index += 1
