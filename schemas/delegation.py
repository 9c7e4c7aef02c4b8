"""Delegation (extensions): agents that let others take turns, and the limits that all of them share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta

from .wire import Reply, Wire

MAX_NAME = 160
AgentId = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
"""What a client calls its agent or turn: any text."""

MAX_DEPTH = 16
MAX_CHILDREN = 64
MAX_TURN_SECONDS = 25 * 86_400.0


class Limits(Wire, frozen=True):
    """What a turn may take, together with all turns that it starts; what is absent is not limited."""

    seconds: Annotated[
        Annotated[float, Meta(gt=0, le=MAX_TURN_SECONDS)] | None,
        Meta(description="From when the turn begins; then it fails with `deadline_exceeded`."),
    ] = None
    tokens: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(
            description="Of prompts and answers, looked at before each step of a model; an answer ends where they are used up."
        ),
    ] = None
    steps: Annotated[Annotated[int, Meta(ge=0)] | None, Meta(description="Steps of models.")] = None
    cost: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(description="Cost units, as the models' prices in the configuration have them."),
    ] = None
    depth: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_DEPTH)] | None,
        Meta(
            description=f"Levels of turns below this one; {MAX_DEPTH} where no turn above says less."
        ),
    ] = None


def stricter(one: Limits, other: Limits) -> Limits:
    """Return the limits that keep both."""

    def least(name: str) -> Any:
        values = (getattr(one, name), getattr(other, name))
        return min((value for value in values if value is not None), default=None)

    return Limits(**{name: least(name) for name in Limits.__struct_fields__})


class Spent(Reply, frozen=True):
    """What a turn has taken, together with all turns that it started and that have ended."""

    steps: int = 0
    tokens: int = 0
    cost: float = 0.0


class Delegation(StrEnum):
    """How agents let others work.

    `call`: one agent is asked, and what it answers is the answer of the call. `fan_out`: many are asked at once, and what
    they answer is gathered. `hand_off`: another agent takes the conversation over.
    """

    call = "call"
    fan_out = "fan_out"
    hand_off = "hand_off"


class SubAgent(Wire, frozen=True):
    """A tool whose calls are turns of other agents."""

    tool_name: Annotated[
        str, Meta(min_length=1, max_length=160, description="What the model calls it.")
    ]
    agents: Annotated[
        list[AgentId],
        Meta(
            min_length=1,
            max_length=MAX_CHILDREN,
            description="Those that may be asked; several for `fan_out` only.",
        ),
    ]
    kind: Delegation = Delegation.call
    description: Annotated[
        str,
        Meta(description="For the model: what it is good for; by default the agents' own names."),
    ] = ""
    at_once: Annotated[
        int,
        Meta(ge=1, le=MAX_CHILDREN, description="Of `fan_out`: turns that run at the same time."),
    ] = 8
    limits: Annotated[
        Limits,
        Meta(description="Of each turn; it has no more than is left of those above it, either."),
    ] = Limits()


class Cause(Wire, frozen=True):
    """The event that a turn was started for."""

    trigger: Annotated[str, Meta(description="The trigger that started it.")]
    subject: Annotated[str, Meta(description="Of the event.")]
    sequence: Annotated[int, Meta(description="Of the event in its stream.")]
    chain: Annotated[
        int,
        Meta(
            ge=1,
            description="How many triggers led to this turn, one after the other, with this one.",
        ),
    ] = 1


class TurnRef(Reply, frozen=True):
    """A turn of an agent."""

    agent_uuid: str
    turn_id: str


class ChildTurn(Reply, frozen=True):
    """A turn that a call of another turn has started."""

    agent_uuid: str
    turn_id: str
    tool_name: str
    step_uuid: Annotated[str, Meta(description="The step of the call.")]
    call: Annotated[int, Meta(description="The place of the call in its step.")]
