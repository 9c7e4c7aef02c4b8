"""What shields look at in a turn, and what comes of what they find. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...schemas import (
    AgenticSystemCreateRequest,
    Message,
    Role,
    SafetyViolation,
    ShieldConfig,
    ShieldStage,
    ToolDefinition,
    ToolResponse,
)
from .records import Checked, Finding
from .step import OpenStep

REFUSAL = "I cannot go on with this: a safety check has stopped it."
"""What the agent answers where a shield stops it and suggests nothing."""
CANCELLED = SafetyViolation(
    violation_type="cancelled", details="the turn ended before the shields had looked"
)
OWN = frozenset(("ok", "failed"))
"""The outcomes in which a tool's own words may stand."""

Shields = Mapping[int, Sequence[ShieldConfig]]
"""Shields, by the place of what they look at."""


def observes(shield: ShieldConfig) -> bool:
    """Tell whether a shield only tells what it finds."""
    return shield.params.get("observe") is True


def withholds(shields: Sequence[ShieldConfig]) -> bool:
    """Tell whether something must not be seen before shields have looked at it."""
    return not all(map(observes, shields))


def definition(config: AgenticSystemCreateRequest, name: str) -> ToolDefinition | None:
    """Return what an agent says of a tool."""
    return next((tool for tool in config.available_tools if tool.tool_name == name), None)


def shields_of(
    config: AgenticSystemCreateRequest,
    stage: ShieldStage,
    step: OpenStep,
    messages: Sequence[Message],
) -> Shields:
    """Return which shields look at what; nothing where there is nothing to look at.

    Args:
        config: the agent.
        stage: where the shields stand.
        step: the step that runs.
        messages: what the user said.
    """
    found: dict[int, Sequence[ShieldConfig]] = {}
    if stage is ShieldStage.input:
        found = dict.fromkeys(range(len(messages)), config.input_shields)
    elif stage is ShieldStage.output:
        if step.said is not None and (step.said.text or step.said.tool_calls):
            found = {0: config.output_shields}
    else:
        for place, call in enumerate(step.calls.wanted):
            tool = definition(config, call.tool_name)
            if tool is None:
                continue
            if stage is ShieldStage.tool_input:
                found[place] = tool.input_shields
            elif step.calls.outcomes.get(place) in OWN:
                found[place] = tool.output_shields
    return {place: shields for place, shields in found.items() if shields}


def main_violation(findings: Sequence[Finding]) -> SafetyViolation | None:
    """Return what a step tells: the first violation that holds something back, else the first that was observed."""
    ranked = sorted(findings, key=lambda finding: finding.violation.observed)
    return ranked[0].violation if ranked else None


def blocking(record: Checked) -> dict[int, SafetyViolation]:
    """Return what must not pass, by place."""
    found: dict[int, SafetyViolation] = {}
    for finding in record.findings:
        if not finding.violation.observed:
            found.setdefault(finding.place, finding.violation)
    return found


def refusal(violation: SafetyViolation) -> Message:
    """Return what the agent answers in place of what a shield stopped."""
    return Message(role=Role.assistant, content=violation.suggested_user_response or REFUSAL)


def withheld(response: ToolResponse, violation: SafetyViolation) -> ToolResponse:
    """Return what the model reads in place of what a tool answered."""
    by = f" by the shield {violation.shield}" if violation.shield else ""
    text = f"The answer of the tool was withheld{by}: {violation.violation_type}."
    return ToolResponse(response.tool_name, text)
