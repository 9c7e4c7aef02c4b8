"""What triggers store on the bus, and where.

KV triggers                                 a trigger (`TriggerRecord`)
KV trigger_counts                           what came of it (`Counted`)
consumer trigger-<id> of EVENTS             which events it has answered; all workers share it
ayllu.v1.event.schedule.<trigger>.due       that its schedule is due (`ScheduleDue`)
ayllu.v1.signal.trigger                     the name of a trigger that was created or removed; live, not stored
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import msgspec

from ...bus.subjects import ROOT
from ...schemas import TriggerCreateRequest
from ..events import event_subject

TRIGGER_BUCKET = "triggers"
COUNT_BUCKET = "trigger_counts"
SIGNAL = f"{ROOT}.signal.trigger"


class TriggerRecord(msgspec.Struct, frozen=True):
    """A trigger, as it is kept.

    Attributes:
        config: what it was created with.
        subject: of its events, whole.
        created: when, in seconds since the epoch.
        after: the last event that came before it.
    """

    config: TriggerCreateRequest
    subject: str
    created: float
    after: int

    @property
    def name(self) -> str:
        """What it is called."""
        return self.config.name

    @property
    def id(self) -> str:
        """What tells it from others, also from an earlier one of its name."""
        return _digest(self.name, repr(self.created))[:32]

    @property
    def consumer(self) -> str:
        """The consumer that keeps which events it has answered."""
        return f"trigger-{self.id}"

    @property
    def created_at(self) -> datetime:
        """When it was created."""
        return datetime.fromtimestamp(self.created, UTC)

    def turn_of(self, event: str) -> str:
        """Return the id of the turn that an event starts, by what tells it from others: the same for each try."""
        return f"trigger-{_digest(self.id, event)[:32]}"


class Counted(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of a trigger; see `Trigger`."""

    fired: int = 0
    skipped: int = 0
    refused: int = 0
    last_fired: float = 0.0
    last_error: str = ""


def due_subject(trigger: str) -> str:
    """Return where it is told that the schedule of a trigger is due."""
    return event_subject("schedule", trigger, "due")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
