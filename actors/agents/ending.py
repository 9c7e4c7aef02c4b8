"""What is told beyond a turn's own events when it has ended: an event on the bus, and the answer to whoever named a subject."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime

from ...bus.bus import Bus
from ...bus.durable import Entry
from ...bus.subjects import ROOT
from ...schemas import (
    AgenticSystemExecuteResponse,
    AylluError,
    Message,
    TooLarge,
    TurnEnded,
    encode,
)
from ..events import event_subject
from .budget import left
from .records import Execute
from .turn import Turn

_SUBJECT = re.compile(r"(?!.{256})[!-)+-\-/-=?-~]+(\.[!-)+-\-/-=?-~]+)*")
"""Tokens of printable ASCII, none of which is a wildcard, in what a server takes for sure."""
OURS = (ROOT.partition(".")[0] + ".", "$")
LONGEST_TEXT = 8000
"""How much of an answer stands in an event, in characters."""


async def tell_end(bus: Bus, turn: Turn) -> None:
    """Tell that a turn has ended. Told again after a crash, it is the same event.

    Raises:
        BusError: it cannot be stored; to be done again.
    """
    event = ended_event(turn, time.time())
    subject = event_subject("turn", event.agent_uuid, event.status)
    await bus.storage.streams.append(
        subject, encode(event), msg_id=f"ended {event.agent_uuid}/{event.turn_id}"
    )


async def answer(bus: Bus, turn: Turn, command: Execute) -> None:
    """Tell whoever named a subject what came of a turn; after a crash it may come twice.

    Raises:
        BusError: the bus is away; to be done again.
    """
    if command.reply:
        told = answer_of(turn)
        if len(told) > bus.transport.max_payload:
            error = TooLarge("the answer is too large for a message; the turn has it")
            told = encode({"error": error.info, "turn_id": turn.opening.turn})
        await bus.transport.publish(command.reply, told)


def ended_event(turn: Turn, now: float) -> TurnEnded:
    """Return the event of a turn's end."""
    opening, ended = turn.opening, turn.ended
    if ended is None:
        raise ValueError("the turn goes on")
    return TurnEnded(
        agent_uuid=opening.agent.config.uuid,
        turn_id=opening.turn,
        status=ended.status,
        ended_at=datetime.fromtimestamp(ended.at, UTC),
        text=text_of(ended.response)[:LONGEST_TEXT],
        error=ended.error,
        spent=turn.spent,
        left=left(opening.limits, turn.spent, now - opening.at),
        parent=turn.parent,
        cause=opening.cause,
    )


def text_of(message: Message | None) -> str:
    """Return the text of a message, without its attachments."""
    content = message.content if message is not None else ""
    parts = content if isinstance(content, list) else [content]
    return "\n".join(part for part in parts if isinstance(part, str))


def answer_of(turn: Turn) -> bytes:
    """Return what is told to whoever named a subject for it: what `agentic_system.execute` answers, or the error."""
    try:
        return encode(AgenticSystemExecuteResponse(turn.whole()))
    except AylluError as error:
        return encode({"error": error.info, "turn_id": turn.opening.turn})


def answerable(subject: str) -> bool:
    """Tell whether answers may go to a subject: none goes to one of ours or of the server's, whoever wishes it."""
    return not subject.startswith(OURS) and _SUBJECT.fullmatch(subject) is not None


async def refuse(bus: Bus, entry: Entry, error: AylluError) -> None:
    """Tell whoever named a subject that no turn comes of a message."""
    if entry.reply_to and answerable(entry.reply_to):
        await bus.transport.publish(entry.reply_to, encode({"error": error.info}))
