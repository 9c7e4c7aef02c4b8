"""What groups store on the bus, and where.

    KV groups                               which conversation a group has (`GroupRecord`)
    ayllu.v1.group.<group>.<born>.event     its journal (`Entry`), fenced: whoever writes knows all that stands before
    ayllu.v1.wake.group.<group>.<born>      the work queue of wake-ups

A group that is removed and one that has its name after it are told apart by when they were born.
"""

from __future__ import annotations

import msgspec

from ...bus.bus import Bus
from ...bus.durable import StreamSpec
from ...bus.subjects import ROOT, decode_token, encode_token
from ...schemas import BusError, GroupEvent, encode

VERSION = 1
GROUP_BUCKET = "groups"
LEASE_BUCKET = "group_leases"

JOURNAL = StreamSpec(
    name="GROUPS",
    subjects=(f"{ROOT}.group.*.*.event",),
    max_bytes=4 << 30,
    # A full stream refuses what is new: a conversation without its beginning is none.
    discard="new",
)
WAKE = StreamSpec(
    name="GROUP_WAKE",
    subjects=(f"{ROOT}.wake.group.*.*",),
    work_queue=True,
    max_bytes=64 << 20,
    discard="new",
)


class GroupRecord(msgspec.Struct, frozen=True):
    """Which conversation a group has: when it was born, and the digest of what it was created with."""

    born: str
    digest: str


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """An entry of a journal: events that stand there together or not at all. What an older version wrote stays readable."""

    events: list[GroupEvent]
    version: int = VERSION


_read_entry = msgspec.json.Decoder(Entry).decode


def journal_subject(group: str, born: str) -> str:
    """Return where the journal of a conversation is."""
    return f"{ROOT}.group.{encode_token(group)}.{encode_token(born)}.event"


def wake_subject(group: str, born: str) -> str:
    """Return where runners are told that a group has something to do."""
    return f"{ROOT}.wake.group.{encode_token(group)}.{encode_token(born)}"


def group_of_wake(subject: str) -> tuple[str, str]:
    """Return the group that a wake-up is for, and when it was born.

    Raises:
        ValueError: it is none.
    """
    group, born = subject.split(".")[-2:]
    return decode_token(group), decode_token(born)


def written(events: list[GroupEvent]) -> bytes:
    """Return what stands in a journal for events."""
    return encode(Entry(events))


def events_of(payload: bytes) -> list[GroupEvent]:
    """Return the events of an entry.

    Raises:
        BusError: there are none.
    """
    try:
        return _read_entry(payload).events
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BusError(f"a group has an entry that is none: {error}", retryable=False) from error


async def ensure_streams(bus: Bus) -> None:
    """Create the streams of groups where they are missing."""
    for spec in (JOURNAL, WAKE):
        await bus.storage.streams.ensure(spec)
