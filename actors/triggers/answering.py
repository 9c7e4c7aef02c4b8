"""What a trigger makes of an event: a turn, or none and why; no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from ...schemas import (
    AgenticSystemExecuteRequest,
    Cause,
    InvalidRequest,
    Message,
    Role,
    matches,
    stricter,
)
from .reading import read_event
from .records import TriggerRecord
from .templates import rendered


@dataclass(frozen=True, slots=True)
class Fire:
    """The agent is started."""

    request: AgenticSystemExecuteRequest


@dataclass(frozen=True, slots=True)
class Skip:
    """The event does not pass the filter."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The event starts nothing, though it passes the filter."""

    reason: str


def answer(
    record: TriggerRecord, subject: str, sequence: int, payload: bytes
) -> Fire | Skip | Refuse:
    """Return what a trigger makes of an event."""
    config = record.config
    try:
        event = read_event(subject, sequence, payload)
        if config.filter is not None and not matches(config.filter, event.fields):
            return Skip()
        if event.used_up:
            return Refuse(f"nothing is left of the budget: {', '.join(event.used_up)}")
        chain = event.chain + 1
        if chain > config.max_chain:
            return Refuse(f"{event.chain} triggers have followed one another: max_chain")
        text = rendered(config.template, event)
    except InvalidRequest as error:
        return Refuse(error.message)
    return Fire(
        AgenticSystemExecuteRequest(
            agent_uuid=config.agent_id,
            messages=[Message(role=Role.user, content=text)],
            turn_id=record.turn_of(event.identity),
            limits=stricter(config.limits, event.left),
            cause=Cause(config.name, subject, sequence, chain),
        )
    )
