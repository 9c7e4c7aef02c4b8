"""Tools that the server runs: operations of actors on the bus. Arguments are checked against the tool's schema first."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import anyio
import msgspec

from ...bus.bus import Bus
from ...schemas import (
    AylluError,
    DeadlineExceeded,
    ToolCall,
    ToolOffer,
    ToolRequest,
    ToolResponse,
    Unavailable,
    decode,
    encode,
)
from ...schemas.proxy import single_reply
from ..patience import FIRST_PAUSE, LONGEST_PAUSE, pause_after
from ..tools.actor import text_size
from ..tools.checking import check_schema, problem_with
from .records import BoundTool, Outcome

log = logging.getLogger(__name__)

TRIES = 3
"""How often a call of an idempotent tool is made, if it fails for a reason that may pass."""
ABSENCE_SECONDS = 15.0
"""How long a call waits for a tool that nobody offers at the moment: its actor may be just coming back."""
CLOSE_SECONDS = 5.0
"""What a tool gets beyond its own time, so that its own word about that arrives."""
MAX_REPLY = 16 << 20
"""Bytes of a reply with its attachments."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call."""

    response: ToolResponse
    outcome: Outcome


def bind(offer: ToolOffer, schema: dict[str, Any] | None) -> BoundTool:
    """Return a tool as an agent keeps it.

    Args:
        offer: what its actor says of it.
        schema: that of the arguments, if the agent declares its own.

    Raises:
        InvalidRequest: the schema is none.
    """
    chosen = schema if schema is not None else offer.parameters
    check_schema(chosen, offer.name)
    return BoundTool(
        offer.name,
        offer.name,
        offer.subject,
        chosen,
        offer.idempotent,
        offer.description,
        offer.seconds,
        offer.max_output,
        offer.takes,
    )


async def run_tool(
    bus: Bus,
    tool: BoundTool | None,
    call: ToolCall,
    key: str,
    earlier: Sequence[dict[str, Any]] = (),
) -> Answer:
    """Run a call. Whatever comes of it is an answer to the model; cancelling it cancels the tool's work.

    Args:
        bus: the bus.
        tool: the tool; None where there is none of this name.
        call: what the model wants.
        key: the same for each try of this call, for the actor.
        earlier: the arguments of earlier calls of the tool in this turn that succeeded.
    """
    if tool is None:
        return told(call, f"There is no tool {call.tool_name!r}.", "invalid")
    problem = problem_with(tool.schema, call.arguments)
    if problem is not None:
        return told(call, f"The arguments are wrong: {problem}", "invalid")
    whole = tool.takes == "request"
    payload = encode(
        ToolRequest(call.tool_name, call.arguments, list(earlier)) if whole else call.arguments
    )
    try:
        reply = await _tried(bus, tool, payload, key)
        response = _response(call, reply, whole)
    except AylluError as error:
        return told(call, f"The tool failed: {error.message}", "failed")
    for size, most in ((text_size(response.content), tool.max_output), (len(reply), MAX_REPLY)):
        if size > most:
            text = f"The tool answered {size} bytes, more than the {most} that can be read."
            return told(call, text, "failed")
    return Answer(response, "ok")


async def _tried(bus: Bus, tool: BoundTool, payload: bytes, key: str) -> bytes:
    """Return a tool's reply, after more than one try where that does no harm.

    Raises:
        AylluError: it failed.
    """
    absent_until = anyio.current_time() + ABSENCE_SECONDS
    pause, failures = FIRST_PAUSE, 0
    while True:
        try:
            running = await bus.calls.open(
                tool.subject,
                payload,
                timeout=tool.seconds + CLOSE_SECONDS,
                idempotency_key=key,
                explain_absence=_absence,
            )
            with closing(running):
                return await single_reply(running)
        except AylluError as error:
            if isinstance(error, _Absent):
                # Nobody took it: to ask again does not make it a second time.
                if anyio.current_time() > absent_until:
                    raise
            else:
                failures += 1
                # What took too long would do so again.
                passes = error.retryable and not isinstance(error, DeadlineExceeded)
                if not (tool.idempotent and passes and failures < TRIES):
                    raise
            log.info("a call of the tool %s is made again: %s", tool.name, error)
            await anyio.sleep(pause_after(error, pause))
            pause = min(2 * pause, LONGEST_PAUSE)


class _Absent(Unavailable):
    """Nobody listens where the calls of a tool go."""


async def _absence() -> AylluError:
    return _Absent("nobody runs it at the moment")


def unknown_outcome(call: ToolCall) -> Answer:
    """Return the answer to a call over which an executor died, and that may not be made again."""
    return told(
        call,
        "It is not known whether this call took effect: the system failed while it ran. "
        "It was not made again.",
        "unknown",
    )


def told(call: ToolCall, text: str, outcome: Outcome) -> Answer:
    """Return an answer that is the system's, not the tool's."""
    return Answer(ToolResponse(call.tool_name, text), outcome)


def _response(call: ToolCall, reply: bytes, whole: bool) -> ToolResponse:
    """Return a reply as the model reads it: what an operation says as text if it is one, else as JSON.

    Raises:
        InvalidRequest: a tool behind `tools.call` says something else than a response.
    """
    if whole:
        return ToolResponse(call.tool_name, decode(reply, ToolResponse).content)
    try:
        value = msgspec.json.decode(reply)
    except msgspec.DecodeError:
        return ToolResponse(call.tool_name, reply.decode(errors="replace"))
    return ToolResponse(call.tool_name, value if isinstance(value, str) else reply.decode())
