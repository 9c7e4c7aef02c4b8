"""Letting shields look, over the bus. What a shield cannot tell, or does not tell in time, counts as a violation."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

import anyio

from ...bus.bus import Bus
from ...bus.subjects import operation_subject
from ...schemas import (
    OPERATIONS,
    AylluError,
    Message,
    Role,
    SafetyViolation,
    ShieldConfig,
    ShieldRequest,
    ShieldResponse,
    ShieldStage,
    ToolCall,
    Unavailable,
    decode,
    encode,
)
from ...schemas.proxy import single_reply
from ..patience import persistently
from .checks import observes
from .records import Checked, Finding
from .turn import Turn

log = logging.getLogger(__name__)

SHIELD_SECONDS = 30.0
"""How long a shield may take, where its params do not say."""
MAX_SHIELD_SECONDS = 600.0
AT_ONCE = 8
"""How many messages of one step shields look at, at once."""
CONTEXT = 10
"""How many of the messages before it a shield sees."""
COMMON_PARAMS = {
    "properties": {
        "observe": {"type": "boolean"},
        "timeout": {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_SHIELD_SECONDS},
    }
}
"""What all shields take beside their own params."""

_CHECK = OPERATIONS["safety.check"]


async def looked(bus: Bus, turn: Turn, stage: ShieldStage) -> Checked:
    """Let the shields of a stage look at the step that runs."""
    # A step that is looked at again after a crash has its check open: what it looks at is the same.
    shields = turn.shields(stage)
    findings: list[Finding] = []
    free = anyio.Semaphore(AT_ONCE)
    said = [*turn.visible_history, *turn.dialog]

    async def look(place: int, shield: ShieldConfig, messages: list[Message]) -> None:
        try:
            violation = await violation_of(bus, shield, stage, messages)
        finally:
            free.release()
        if violation is not None:
            findings.append(Finding(place, violation))

    async with anyio.create_task_group() as tasks:
        for place, ones in shields.items():
            messages = _messages_at(turn, stage, place, said)
            for shield in ones:
                await free.acquire()  # Before there is a task: there may be many messages.
                tasks.start_soon(look, place, shield, messages)
    findings.sort(key=lambda finding: (finding.place, finding.violation.shield or ""))
    return Checked(at=time.time(), findings=findings)


def _messages_at(
    turn: Turn, stage: ShieldStage, place: int, before: Sequence[Message]
) -> list[Message]:
    """Return what a shield looks at, the last message, and the latest of what was said before it."""
    step = turn.step
    if stage is ShieldStage.input:
        end = len(before) - len(turn.dialog) + place + 1
        return list(before[max(0, end - CONTEXT - 1) : end])
    if step is None:
        raise ValueError("no step runs")
    if stage is ShieldStage.output:
        said = step.said
        text, calls = (said.text, said.tool_calls) if said is not None else ("", [])
        last = Message(role=Role.assistant, content=text, tool_calls=calls)
    elif stage is ShieldStage.tool_input:
        last = call_message(step.calls.wanted[place])
    else:
        response = step.calls.responses[place]
        last = Message(role=Role.tool, content="", tool_responses=[response])
    return [*before[-CONTEXT:], last]


def call_message(call: ToolCall) -> Message:
    """Return the message that a shield before a tool looks at."""
    return Message(role=Role.assistant, content="", tool_calls=[call])


def own_params(shield: ShieldConfig) -> dict[str, Any]:
    """Return the params that are the shield's own."""
    common = COMMON_PARAMS["properties"]
    return {name: value for name, value in shield.params.items() if name not in common}


async def violation_of(
    bus: Bus, shield: ShieldConfig, stage: ShieldStage, messages: Sequence[Message]
) -> SafetyViolation | None:
    """Return what a shield finds in the last message; also where it fails, since nobody knows what it would have found."""
    request = ShieldRequest(shield.shield_type, stage, list(messages), own_params(shield))
    seconds = float(shield.params.get("timeout", SHIELD_SECONDS))
    try:
        with anyio.fail_after(seconds):
            violation = await persistently(
                partial(_asked, bus, shield.shield_type, encode(request), seconds),
                patience=seconds,
            )
    except TimeoutError:
        violation = _unknown(shield, f"it did not tell within {seconds:g} s")
    except AylluError as error:
        violation = _unknown(shield, error.message)
    if violation is None:
        return None
    log.info("the shield %s found %s", shield.shield_type, violation.violation_type)
    return SafetyViolation(
        violation.violation_type,
        violation.details,
        violation.suggested_user_response,
        shield.shield_type,
        observes(shield),
        violation.score,
    )


def _unknown(shield: ShieldConfig, why: str) -> SafetyViolation:
    log.warning("the shield %s cannot tell: %s", shield.shield_type, why)
    return SafetyViolation("unknown", f"the shield cannot tell: {why}")


async def _asked(bus: Bus, name: str, payload: bytes, seconds: float) -> SafetyViolation | None:
    async def absence() -> AylluError:
        return Unavailable("nobody runs it at the moment")

    call = await bus.calls.open(
        operation_subject(_CHECK, name), payload, timeout=seconds, explain_absence=absence
    )
    with closing(call):
        return decode(await single_reply(call), ShieldResponse).violation
