"""The step of a turn that runs, and the events of a turn. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from ...schemas import (
    AgenticSystemExecuteResponseStreamChunk,
    ExecutionStepType,
    SafetyViolation,
    ShieldStage,
    ToolCall,
    ToolResponse,
)
from .delegation import Child
from .records import Decided, Outcome, Said

Chunk = AgenticSystemExecuteResponseStreamChunk
Kind = ExecutionStepType


class Event(msgspec.Struct, frozen=True):
    """An event of a turn under its index."""

    index: int
    chunk: Chunk


@dataclass(slots=True)
class Calls:
    """The calls of a tool execution.

    Attributes:
        wanted: what runs: what the model wants, or what it was changed to by whoever approved it.
        waiting: the places of those that need a decision and have none.
        expires: when those that wait are denied, in seconds since the epoch.
        decided: what was decided, by place.
        released: of those that may run, in which attempt they were let go: from then on they may be in flight.
        blocked: what shields found in their arguments, by place.
        responses: of those that have one, by place.
        outcomes: what came of these.
        children: of calls of sub-agents that were split into tasks, these, by place.
    """

    wanted: list[ToolCall]
    waiting: set[int]
    expires: float = 0.0
    decided: dict[int, Decided] = field(default_factory=dict)
    released: dict[int, int] = field(default_factory=dict)
    blocked: dict[int, SafetyViolation] = field(default_factory=dict)
    responses: dict[int, ToolResponse] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    children: dict[int, list[Child]] = field(default_factory=dict)

    @property
    def left(self) -> list[int]:
        """The places of those that have no response."""
        return [place for place in range(len(self.wanted)) if place not in self.responses]

    @property
    def ready(self) -> list[int]:
        """The places of those that may run, and have no response."""
        return [place for place in self.left if place in self.released]

    @property
    def running_children(self) -> list[tuple[int, int, Child]]:
        """The turns that run for calls without a response, with the places of their calls and tasks."""
        return [
            (place, number, child)
            for place in self.left
            for number, child in enumerate(self.children.get(place, ()))
            if child.runs
        ]


@dataclass(slots=True)
class Check:
    """Shields that look at what the step that runs has come to: a step within it."""

    uuid: str
    stage: ShieldStage


@dataclass(slots=True)
class OpenStep:
    """The step that runs.

    Attributes:
        uuid: its id.
        kind: its kind.
        first: the index of its first event that is not its start or of shields.
        attempt: whose attempt began it.
        calls: of a tool execution.
        text: of an inference, what is known to have been said by an earlier attempt.
        cuts: see `Said`.
        said: of an inference, all of it, while shields look at it.
        told: whether that was told already.
        check: the shields that look.
        checked: where shields have looked.
    """

    uuid: str
    kind: ExecutionStepType
    first: int
    attempt: int
    calls: Calls = field(default_factory=lambda: Calls([], set()))
    text: str = ""
    cuts: list[int] = field(default_factory=list)
    said: Said | None = None
    told: bool = False
    check: Check | None = None
    checked: set[ShieldStage] = field(default_factory=set)
