"""Dead letters: what could not be handled, kept with the reason, until somebody looks and perhaps sends it again."""

from __future__ import annotations

import hashlib
import time

import msgspec

from ..schemas import NotFound, decode, encode
from .durable import Entry, Storage, StreamSpec
from .subjects import ROOT

SPEC = StreamSpec(
    name="DLQ",
    subjects=(f"{ROOT}.dlq.>",),
    max_bytes=1 << 30,
    max_age=30 * 24 * 3600.0,
    max_per_subject=1,
)
BUCKET = "dead_letters"
INLINE_BYTES = 256 << 10
"""A larger payload is kept beside the letter, because its JSON form could exceed what a message may hold."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry that could not be handled.

    Attributes:
        id: what `replay` takes; the same entry has the same id, however often it is buried.
        subject: where it was.
        msg_id: its own id.
        sequence: where it stood in its stream.
        payload: what it said; in a list of letters it is left out where it is large (see ``size``).
        size: the size of the payload in bytes.
        reason: why it could not be handled, for people.
        attempts: how often it was tried.
        buried: when, in seconds since the epoch.
    """

    id: str
    subject: str
    msg_id: str
    sequence: int
    payload: bytes = b""
    size: int = 0
    reason: str
    attempts: int
    buried: float


async def bury(storage: Storage, entry: Entry, *, reason: str, attempts: int) -> str:
    """Keep an entry as a dead letter and return its id. To do it twice is to do it once.

    Raises:
        BusError: no answer; try again before the entry is acknowledged or terminated.
    """
    identity = f"{entry.subject}\n{entry.sequence}\n{entry.msg_id}"
    id_ = hashlib.sha256(identity.encode()).hexdigest()[:32]
    payload = entry.payload
    if len(payload) > INLINE_BYTES:
        objects = await storage.objects(BUCKET, ttl=SPEC.max_age)
        await objects.put(id_, payload)
        payload = b""
    letter = DeadLetter(
        id=id_,
        subject=entry.subject,
        msg_id=entry.msg_id,
        sequence=entry.sequence,
        payload=payload,
        size=len(entry.payload),
        reason=reason,
        attempts=attempts,
        buried=time.time(),
    )
    await storage.streams.ensure(SPEC)
    # The number of attempts, so that an entry that dies again after its letter was removed gets a new one.
    await storage.streams.append(_subject(id_), encode(letter), msg_id=f"dlq:{id_}:{attempts}")
    return id_


async def letters(storage: Storage) -> list[DeadLetter]:
    """Return all dead letters, the oldest first; large payloads are left out."""
    await storage.streams.ensure(SPEC)
    async with storage.streams.replay(SPEC.name) as entries:
        return [decode(entry.payload, DeadLetter) async for entry in entries]


async def replay(storage: Storage, id_: str) -> None:
    """Send a dead letter to where it was, as a new entry without expiry, and remove it.

    When it fails between the two, the letter stays; a replay within two minutes is then no second entry.

    Raises:
        NotFound: there is no such letter, or no stream takes its subject any more.
        BusError: no answer.
    """
    letter = await _letter(storage, id_)
    payload = letter.payload
    if letter.size and not payload:
        objects = await storage.objects(BUCKET, ttl=SPEC.max_age)
        payload = await objects.get(id_)
    # The time of burial makes another id of it when it dies and is replayed again.
    again = f"replay:{id_}:{letter.buried!r}"
    await storage.streams.append(letter.subject, payload, msg_id=again)
    await remove(storage, id_)


async def remove(storage: Storage, id_: str) -> None:
    """Forget a dead letter.

    Raises:
        NotFound: there is no such letter.
        BusError: no answer.
    """
    letter = await _letter(storage, id_)
    await storage.streams.purge(SPEC.name, _subject(id_))
    if letter.size and not letter.payload:
        objects = await storage.objects(BUCKET, ttl=SPEC.max_age)
        await objects.delete(id_)


async def _letter(storage: Storage, id_: str) -> DeadLetter:
    await storage.streams.ensure(SPEC)
    # An id is hexadecimal: nothing else may become part of a subject.
    entry = await storage.streams.last(SPEC.name, _subject(id_)) if id_.isalnum() else None
    if entry is None:
        raise NotFound(f"there is no dead letter {id_!r}")
    return decode(entry.payload, DeadLetter)


def _subject(id_: str) -> str:
    return f"{ROOT}.dlq.{id_}"
