"""Events, as triggers read them: those of ayllu with all their fields, others as the JSON that they are; no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from ...schemas import InvalidRequest, JobEnded, Limits, ScheduleDue, TurnEnded, decode
from ...schemas.wire import convert
from ..agents.budget import LEAST_SECONDS
from .patterns import kind_of

MAX_EVENT = 512 << 10
"""Bytes of an event that a trigger reads."""
BUDGET = {"seconds": LEAST_SECONDS, "tokens": 0, "steps": 0, "cost": 0}
"""The limits that can be used up, and what is left of them then."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event.

    Attributes:
        subject: where it stood.
        sequence: its place in the stream.
        text: its JSON, as it came.
        fields: what filters and templates see: of ayllu's own events also what is not sent because it is the default.
        known: what it is, if it is one of ayllu's own.
        left: what the limits leave of the turn whose end it is.
        used_up: which of them leave nothing.
        chain: how many triggers have led to that turn.
    """

    subject: str
    sequence: int
    text: str
    fields: dict[str, Any]
    known: msgspec.Struct | None = None
    left: Limits = field(default_factory=Limits)
    used_up: tuple[str, ...] = ()
    chain: int = 0

    @property
    def identity(self) -> str:
        """What tells it from others: an end that is told a second time is the same event."""
        match self.known:
            case TurnEnded(agent_uuid=agent, turn_id=turn):
                return f"turn {agent!r} {turn!r}"  # Both may be any text.
            case JobEnded(job=job):
                return f"job {job}"
            case ScheduleDue(at=at):
                return f"due {at.isoformat()}"
            case _:
                return str(self.sequence)


def read_event(subject: str, sequence: int, payload: bytes) -> Event:
    """Read an event.

    Raises:
        InvalidRequest: it is no JSON object, or not what its subject says.
    """
    if len(payload) > MAX_EVENT:
        raise InvalidRequest(f"the event has {len(payload)} bytes, more than {MAX_EVENT}")
    try:
        raw: dict[str, Any] = decode(payload, dict[str, Any])
    except InvalidRequest as error:
        raise InvalidRequest(f"the event is no JSON object: {error.message}") from error
    text = payload.decode()
    type_ = kind_of(subject)
    if type_ is None:
        return Event(subject, sequence, text, raw)
    used_up = _used_up(raw.get("left")) if type_ is TurnEnded else ()
    if used_up:
        # Limits that may not be zero would not be read.
        raw["left"] = {key: value for key, value in raw["left"].items() if key not in used_up}
    try:
        known = convert(raw, type_)
    except InvalidRequest as error:
        raise InvalidRequest(f"the event is no {type_.__name__}: {error.message}") from error
    fields = plain(known)
    fields.get("left", {}).update(dict.fromkeys(used_up, 0))
    if not isinstance(known, TurnEnded):
        return Event(subject, sequence, text, fields, known)
    chain = known.cause.chain if known.cause else 0
    return Event(subject, sequence, text, fields, known, known.left, used_up, chain)


def plain(value: object) -> Any:
    """Return a value as JSON has it, with all fields of structs, be they the default."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    return msgspec.to_builtins(value)


def _used_up(left: object) -> tuple[str, ...]:
    if not isinstance(left, dict):
        return ()
    return tuple(
        name
        for name, least in BUDGET.items()
        if isinstance(value := left.get(name), int | float) and value <= least
    )
