"""Approvals: calls of tools that wait for a person's decision (extensions)."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta

from .content import ToolCall
from .wire import Reply, Wire

MAX_REASON = 2000


class ApprovalDecision(StrEnum):
    """What a person says to a call."""

    approve = "approve"
    deny = "deny"


class Approval(Reply, frozen=True):
    """A call of a tool that waits for a decision, or that has one."""

    agent_uuid: str
    turn_id: str
    call_id: Annotated[str, Meta(description="Names the call within its turn.")]
    tool_call: Annotated[
        ToolCall, Meta(description="What the model wants; once it was decided, what runs.")
    ]
    expires_at: Annotated[datetime, Meta(description="When it is denied if nobody has decided.")]
    decision: Annotated[
        ApprovalDecision | None, Meta(description="Absent while the call waits.")
    ] = None
    reason: Annotated[str, Meta(description="Why it was denied, for the model.")] = ""
    changed: Annotated[
        bool, Meta(description="Whether it was approved with other arguments than the model's.")
    ] = False


class ApproveRequest(Wire, frozen=True):
    """Decide about a call."""

    agent_id: str
    turn_id: str
    call_id: str
    decision: ApprovalDecision = ApprovalDecision.approve
    reason: Annotated[
        str, Meta(max_length=MAX_REASON, description="Why it is denied; the model reads it.")
    ] = ""
    arguments: Annotated[
        dict[str, Any] | None,
        Meta(description="What the call runs with in place of the model's arguments."),
    ] = None
