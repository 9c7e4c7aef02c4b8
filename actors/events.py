"""Events on the bus: one stream, which programs follow and triggers are started by; `ayllu.schemas.events` has their types."""

from __future__ import annotations

import logging

import msgspec

from ..bus.bus import Bus
from ..bus.durable import StreamSpec
from ..bus.subjects import ROOT, encode_token
from ..schemas import AylluError, encode

log = logging.getLogger(__name__)

DAY = 86_400.0

EVENTS = StreamSpec(
    name="EVENTS", subjects=(f"{ROOT}.event.>",), max_bytes=2 << 30, max_age=30 * DAY
)


def event_subject(kind: str, name: str, what: str) -> str:
    """Return where events of something go, for example of the kind ``turn``: an agent's name, and a status."""
    return f"{ROOT}.event.{kind}.{encode_token(name)}.{what}"


async def ensure_events(bus: Bus) -> None:
    """Create the stream of events where it is missing."""
    await bus.storage.streams.ensure(EVENTS)


async def publish_event(bus: Bus, subject: str, event: msgspec.Struct, msg_id: str) -> None:
    """Store an event; what cannot be stored is logged: whatever happened, has.

    Args:
        bus: the bus.
        subject: see `event_subject`.
        event: what happened.
        msg_id: the same for each try.
    """
    try:
        await bus.storage.streams.append(subject, encode(event), msg_id=msg_id)
    except AylluError as error:
        log.warning("the event %s could not be stored: %s", subject, error)
