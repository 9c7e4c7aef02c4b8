"""Tools that the server runs: operations of actors on the bus. Arguments are checked against the tool's schema first."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import msgspec
from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from ...bus.bus import Bus
from ...schemas import AylluError, InvalidRequest, ToolCall, ToolOffer, ToolResponse, encode
from ...schemas.proxy import single_reply
from .records import BoundTool, Outcome

log = logging.getLogger(__name__)

TOOL_SECONDS = 120.0
"""How long a tool may take."""
MAX_OUTPUT = 64 << 10
"""Bytes that a tool may answer; more would not fit a model's context, and is told to the model instead of being cut."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call."""

    response: ToolResponse
    outcome: Outcome


def bind(offer: ToolOffer, schema: dict[str, Any] | None) -> BoundTool:
    """Return a tool as an agent keeps it.

    Args:
        offer: the operation.
        schema: that of the arguments, if the agent declares its own.

    Raises:
        InvalidRequest: the schema is none.
    """
    chosen = schema if schema is not None else offer.parameters
    try:
        Draft202012Validator.check_schema(chosen)
    except SchemaError as error:
        raise InvalidRequest(
            f"the parameters of {offer.name!r} are no JSON schema: {error.message}"
        ) from error
    return BoundTool(
        offer.name, offer.name, offer.subject, chosen, offer.idempotent, offer.description
    )


def problem_with(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the arguments of a call, for the model to read; None if they are right."""
    # With a registry of its own nothing that a schema refers to is fetched.
    validator = Draft202012Validator(schema, registry=Registry())
    try:
        error = best_match(validator.iter_errors(arguments))
    except Unresolvable as unresolvable:
        return f"the tool's schema cannot be followed: {unresolvable}"
    if error is None:
        return None
    where = "/".join(str(part) for part in error.absolute_path)
    return f"{where}: {error.message}" if where else str(error.message)


async def run_tool(bus: Bus, tool: BoundTool | None, call: ToolCall, key: str) -> Answer:
    """Run a call. Whatever comes of it is an answer to the model; cancelling it cancels the tool's work.

    Args:
        bus: the bus.
        tool: the tool; None where there is none of this name.
        call: what the model wants.
        key: the same for each try of this call, for the actor.
    """
    if tool is None:
        return _told(call, f"There is no tool {call.tool_name!r}.", "invalid")
    problem = problem_with(tool.schema, call.arguments)
    if problem is not None:
        return _told(call, f"The arguments are wrong: {problem}", "invalid")
    try:
        running = await bus.calls.open(
            tool.subject, encode(call.arguments), timeout=TOOL_SECONDS, idempotency_key=key
        )
        with closing(running):
            reply = await single_reply(running)
    except AylluError as error:
        return _told(call, f"The tool failed: {error.message}", "failed")
    if len(reply) > MAX_OUTPUT:
        text = f"The tool answered {len(reply)} bytes, more than the {MAX_OUTPUT} that can be read."
        return _told(call, text, "failed")
    return Answer(ToolResponse(call.tool_name, _text_of(reply)), "ok")


def unknown_outcome(call: ToolCall) -> Answer:
    """Return the answer to a call over which an executor died, and that may not be made again."""
    return _told(
        call,
        "It is not known whether this call took effect: the system failed while it ran. "
        "It was not made again.",
        "unknown",
    )


def _told(call: ToolCall, text: str, outcome: Outcome) -> Answer:
    return Answer(ToolResponse(call.tool_name, text), outcome)


def _text_of(reply: bytes) -> str:
    """Return a reply as the model reads it: a text as it is, everything else as JSON."""
    try:
        value = msgspec.json.decode(reply)
    except msgspec.DecodeError:
        return reply.decode(errors="replace")
    return value if isinstance(value, str) else reply.decode()
