"""Entries of the streams of agents: written and read, large ones by way of the object store."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from ...bus.bus import Bus
from ...bus.claims import Claims
from ...bus.durable import Entry
from ...schemas import BusError, InvalidRequest, NotFound, encode
from .records import Command, Delta, Execute, JournalRecord
from .streams import DELTAS, JOURNAL, STREAMS, delta_subject, journal_subject

log = logging.getLogger(__name__)

BUCKET = "turns"
CLAIM_PREFIX = b'{"claim":'
LARGEST = 128 << 10
"""What stands in the journal itself, in bytes; larger records wait in the object store."""

_records: msgspec.json.Decoder[list[JournalRecord]] = msgspec.json.Decoder(list[JournalRecord])
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


def turn_of(entry: Entry, command: Execute) -> str:
    """Return the turn that a command begins: a dead letter that is sent again is a new one, since its old one has ended."""
    return (
        f"{command.turn}~{entry.sequence}" if entry.msg_id.startswith("replay:") else command.turn
    )


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
            (entry.sequence, record)
            async for entry in entries
            for record in read_records(await unpacked(claims, entry.payload))
        )


@asynccontextmanager
async def standing_deltas(
    bus: Bus, agent: str, turn: str
) -> AsyncIterator[AsyncIterator[tuple[int, Delta]]]:
    """Read the deltas of a turn that are there, with their sequences."""
    await deltas_made(bus)
    async with bus.storage.streams.replay(DELTAS.name, delta_subject(agent, turn)) as entries:
        yield (
            (entry.sequence, delta)
            async for entry in entries
            if (delta := read_delta(entry)) is not None
        )


async def deltas_made(bus: Bus) -> str:
    """Return which stream of deltas there is; after the nats-server's end, a new one is made."""
    try:
        return (await bus.storage.streams.state(DELTAS.name)).made
    except NotFound:
        await bus.storage.streams.ensure(DELTAS)
        return (await bus.storage.streams.state(DELTAS.name)).made


def read_records(payload: bytes) -> list[JournalRecord]:
    """Read the records of an entry.

    Raises:
        BusError: there are none.
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
