"""The traces of turns (extension): when what happened in a turn, and in all turns that it has started."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Protocol

from msgspec import Meta

from .agents import ExecutionStepType, TurnStatus
from .content import TokenUsage
from .delegation import Cause, Spent, TurnRef
from .errors import ErrorInfo
from .webmethod import webmethod
from .wire import Reply

MAX_TRACED = 256


class CallTrace(Reply, frozen=True):
    """A call of a tool, and the turns that it has started."""

    tool_name: str
    began_at: Annotated[
        datetime | None, Meta(description="From when on it could run; absent while it waits.")
    ] = None
    ended_at: datetime | None = None
    outcome: Annotated[
        str | None,
        Meta(description="`ok`, `failed`, `denied`, ...; absent while it runs or waits."),
    ] = None
    children: list[TurnTrace] = []
    left_out: Annotated[
        int,
        Meta(
            description="More turns that it has started, of which nothing is told here: the trace ends at "
            f"{MAX_TRACED} turns, or what they left is gone."
        ),
    ] = 0


class StepTrace(Reply, frozen=True):
    """A step of a turn. Shields look within other steps, so that the times of steps overlap."""

    uuid: str
    step_type: ExecutionStepType
    began_at: datetime
    ended_at: datetime | None = None
    usage: Annotated[TokenUsage | None, Meta(description="Of a step of the model.")] = None
    calls: Annotated[list[CallTrace], Meta(description="Of an execution of tools.")] = []


class TurnTrace(Reply, frozen=True):
    """When what happened in a turn, as far as it has come."""

    agent_uuid: str
    turn_id: str
    status: TurnStatus
    begun_at: datetime | None = None
    ended_at: datetime | None = None
    queued_seconds: Annotated[
        float | None,
        Meta(description="How long it waited to begin, where another turn has started it."),
    ] = None
    attempts: Annotated[
        int, Meta(description="How many executors have worked on it, one after the other.")
    ] = 0
    usage: TokenUsage | None = None
    spent: Annotated[
        Spent, Meta(description="With all turns that it has started and that have ended.")
    ] = Spent()
    error: ErrorInfo | None = None
    parent: TurnRef | None = None
    cause: Cause | None = None
    steps: Annotated[list[StepTrace], Meta(description="In the order in which they began.")] = []


class TurnTraces(Protocol):
    """See when what happened in turns (extension)."""

    @webmethod(route="/agentic_system/turn/trace", method="GET", api="AgenticSystem")
    async def trace(self, turn_id: str, agent_id: str | None = None) -> TurnTrace:
        """Return when what happened in a turn, and in all turns that it has started.

        Without an agent, it is found by the turn; where agents have turns of the same id, that is refused with `conflict`.
        """
        ...
