"""The Safety API: shields that look at what is said, and at what tools take and give."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Protocol

from msgspec import Meta

from .content import Message, ShieldName
from .webmethod import webmethod
from .wire import Reply, Wire


class ShieldStage(StrEnum):
    """Where a shield stands: before and behind the model, before and behind a tool."""

    input = "input"
    output = "output"
    tool_input = "tool_input"
    tool_output = "tool_output"


class SafetyViolation(Wire, frozen=True):
    """What a shield found; the fields after the draft's three are extensions."""

    violation_type: str
    details: str
    suggested_user_response: str | None = None
    shield: Annotated[str | None, Meta(description="The shield that found it.")] = None
    observed: Annotated[
        bool, Meta(description="Whether the shield only observes: nothing was held back for it.")
    ] = False
    score: Annotated[
        float | None, Meta(description="How sure the shield is, from 0 to 1, if it can tell.")
    ] = None


class ShieldRequest(Wire, frozen=True):
    """Ask a shield about the last of some messages; those before it are what it was said after.

    ``stage`` tells what the last message is: what the user said (``input``), what the model said (``output``), one call of a
    tool, in ``tool_calls`` (``tool_input``), or one answer of a tool, in ``tool_responses`` (``tool_output``).
    """

    shield_type: ShieldName
    stage: ShieldStage
    messages: Annotated[list[Message], Meta(min_length=1)]
    params: dict[str, Any] = {}


class ShieldResponse(Reply, frozen=True):
    """What the shield found; without a violation, nothing."""

    violation: SafetyViolation | None = None


class ShieldOffer(Reply, frozen=True):
    """A shield that an actor runs."""

    name: Annotated[str, Meta(description="What a `ShieldConfig` calls it.")]
    description: Annotated[str, Meta(description="What it does, and how far it can be trusted.")]
    parameters: Annotated[dict[str, Any], Meta(description="The JSON schema of its params.")]


class Safety(Protocol):
    """Look at messages for what must not pass."""

    @webmethod(route="/safety/check", routed_by="shield_type", idempotent=True, timeout=120.0)
    async def check(self, request: ShieldRequest) -> ShieldResponse:
        """Let a shield look at a message (extension)."""
        ...
