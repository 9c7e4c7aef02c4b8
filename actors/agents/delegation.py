"""Calls whose answers are turns of other agents: what they are split into, what each may take, what their answers come to. No I/O.

A call of a `SubAgent` is split into tasks, each task is a turn of its agent in a lane of its own, under an id that follows from
the call: so it is the same turn, whoever starts it again. When all have ended, what they answered is the answer of the call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import msgspec

from ...schemas import (
    AgenticSystemCreateRequest,
    AylluError,
    Delegation,
    InvalidRequest,
    Limits,
    SubAgent,
    ToolDefinition,
    TurnRef,
    TurnStatus,
    encode,
)
from ...schemas.delegation import MAX_CHILDREN
from .records import BoundTool, Outcome, Returned, Task
from .streams import command_subject, lane_of

HAND_BACK = "hand_back"
"""The tool by which an agent that was handed a conversation gives it back."""
MESSAGE = {"type": "string", "minLength": 1}


@dataclass(slots=True)
class Child:
    """A task, and the turn that it is.

    Attributes:
        task: what is asked of which agent.
        turn: the turn's id.
        limits: what it may take; None before it has begun.
        returned: how it ended.
    """

    task: Task
    turn: str
    limits: Limits | None = None
    returned: Returned | None = None

    @property
    def runs(self) -> bool:
        """Whether it has begun, and has not ended."""
        return self.limits is not None and self.returned is None


def child_id(step: str, call: int, task: int) -> str:
    """Return the id of the turn that a task is: the same, whoever starts it."""
    return uuid5(NAMESPACE_OID, msgspec.json.encode([step, call, task]).decode()).hex


def bound(sub: SubAgent) -> BoundTool:
    """Return sub-agents as a tool."""
    return BoundTool(
        name=sub.tool_name,
        operation="",
        subject="",
        schema=schema_of(sub),
        idempotent=True,
        description=described(sub),
        takes="turns",
    )


HAND_BACK_TOOL = BoundTool(
    name=HAND_BACK,
    operation="",
    subject="",
    schema={
        "type": "object",
        "properties": {"message": {**MESSAGE, "description": "What was found or done."}},
        "required": ["message"],
        "additionalProperties": False,
    },
    idempotent=True,
    description="Give the conversation back to the agent that handed it over.",
    takes="turns",
)


def schema_of(sub: SubAgent) -> dict[str, Any]:
    """Return the JSON schema of the arguments of a call."""
    message: dict[str, Any] = {
        **MESSAGE,
        "description": "A question or task, with all that must be known for it.",
    }
    if sub.kind is Delegation.hand_off:
        note = {
            "type": "string",
            "description": "What the other agent must know beside what was said.",
        }
        return {"type": "object", "properties": {"message": note}, "additionalProperties": False}
    if sub.kind is Delegation.call:
        return _object({"message": message}, ["message"])
    fields: dict[str, Any] = {"message": message}
    if len(sub.agents) > 1:
        fields["agent"] = {"enum": list(sub.agents), "description": "Who is asked."}
    tasks = {
        "type": "array",
        "items": _object(fields, list(fields)),
        "minItems": 1,
        "maxItems": MAX_CHILDREN,
    }
    return _object({"tasks": tasks}, ["tasks"])


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def described(sub: SubAgent) -> str:
    """Return what a model is told of sub-agents."""
    if sub.description:
        return sub.description
    names = ", ".join(sub.agents)
    if sub.kind is Delegation.hand_off:
        return f"Hand the conversation over to the agent {names}, who then answers the user."
    if sub.kind is Delegation.fan_out:
        return f"Ask these agents for many things at once: {names}."
    return f"Ask the agent {names}."


def definitions(config: AgenticSystemCreateRequest, *, handed: bool) -> list[ToolDefinition]:
    """Return the tools that a model is told of beside those of its configuration.

    Args:
        config: the agent's.
        handed: whether it was handed the conversation.
    """
    tools = [bound(sub) for sub in config.sub_agents] + ([HAND_BACK_TOOL] if handed else [])
    return [
        ToolDefinition(tool.name, parameters=tool.schema, description=tool.description)
        for tool in tools
    ]


def sub_agent(config: AgenticSystemCreateRequest, name: str) -> SubAgent | None:
    """Return the sub-agents that a tool stands for, if it does."""
    return next((sub for sub in config.sub_agents if sub.tool_name == name), None)


def hands_off(sub: SubAgent | None) -> bool:
    """Tell whether calls of a tool hand the conversation over."""
    return sub is not None and sub.kind is Delegation.hand_off


def tasks_of(sub: SubAgent, arguments: Mapping[str, Any]) -> list[Task]:
    """Return the tasks of a call, whose arguments fit `schema_of`."""
    if sub.kind is Delegation.fan_out:
        return [Task(one.get("agent", sub.agents[0]), one["message"]) for one in arguments["tasks"]]
    return [Task(sub.agents[0], arguments.get("message", ""))]


def refusal_of(lineage: Sequence[TurnRef], agent: str, turn: str, levels: int) -> AylluError | None:
    """Return why no turn of an agent may be started, if it may not.

    Args:
        lineage: the turns above it, with that which would start it.
        agent: the agent.
        turn: the turn.
        levels: how many more there may be, one below the other.
    """
    above = [one.agent_uuid for one in lineage]
    if agent in above:
        chain = " -> ".join([*above[above.index(agent) :], agent])
        return InvalidRequest(f"the agent {agent!r} waits for this turn itself: {chain}")
    if levels < 1:
        return InvalidRequest("no turns may be started here: they would stand too deep")
    return lane_problem(agent, turn)


def lane_problem(agent: str, turn: str) -> AylluError | None:
    """Return why no turn of an agent can stand beside its others, if its name is too long for that."""
    try:
        command_subject(lane_of(agent, turn))
    except InvalidRequest as error:
        return error
    return None


def gathered(sub: SubAgent, children: Sequence[Child]) -> tuple[str, Outcome]:
    """Return the answer of a call whose turns have all ended, and what came of it.

    Of a `fan_out`, it is a JSON list in the order of the tasks, in which those that failed have their error; the call
    fails where all have.
    """
    ended = [child.returned for child in children if child.returned is not None]
    answers = [one for one in ended if one.status is TurnStatus.completed]
    outcome: Outcome = "ok" if answers else "failed"
    if sub.kind is Delegation.fan_out:
        told = [
            {"agent": child.task.agent, **_told(one)}
            for child, one in zip(children, ended, strict=True)
        ]
        return encode(told).decode(), outcome
    [one] = ended
    if answers:
        return one.text, outcome
    return f"The agent {children[0].task.agent} gave no answer: {_why(one)}", outcome


def _told(one: Returned) -> dict[str, str]:
    return {"answer": one.text} if one.status is TurnStatus.completed else {"error": _why(one)}


def _why(one: Returned) -> str:
    return one.error.message if one.error is not None else f"its turn was {one.status}"
