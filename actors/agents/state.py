"""What has happened in a turn, as its machine knows it, and what all steps need of that. No I/O."""

from __future__ import annotations

from uuid import NAMESPACE_OID, uuid5

import msgspec

from ...schemas import (
    AgenticSystemExecuteResponseEventType,
    Approval,
    ChildTurn,
    ExecutionStep,
    ExecutionStepType,
    HistoryPolicy,
    HistoryUse,
    InvalidRequest,
    Message,
    SafetyViolation,
    ShieldStage,
    Spent,
    TokenUsage,
    ToolCall,
    TurnRef,
)
from .budget import added
from .checks import (
    Shields,
    shields_of,
    withholds,
)
from .records import (
    Began,
    Ended,
    Said,
)
from .step import Chunk, Event, OpenStep
from .streams import DAY

Type = AgenticSystemExecuteResponseEventType

LONGEST = 25 * DAY
"""After what time of a turn no call waits for a decision any more, in seconds."""


class State:
    """What has happened in a turn.

    Attributes:
        began: its first record; None before it.
        attempt: the executor's claim that holds.
        still: claims since the journal last moved.
        epoch: see `TurnEvent`.
        deltas: which stream of deltas the executor that holds the claim found.
        index: of the next event.
        steps: those that have ended.
        step: the one that runs.
        ended: how the turn ended.
        usage: tokens of all steps.
        use: how much of the history the model sees.
        attached: whether the addresses of attachments were followed.
        dialog: what was said in the turn, as the model sees it.
        inferences: steps of the model that began.
        invalid: calls with wrong arguments.
        said: what the model said last.
        pending: the calls that it made then.
        done: the calls that tools have answered.
        approvals: what was asked of people, by the id of the call.
        blocked: what a shield has stopped the turn for.
        below: what the turns that it started have taken.
        children: these turns.
        handed: the tool by which the conversation was handed over, and what the other agent answered.
        back: what is said to the agent that the conversation is handed back to.
    """

    def __init__(self) -> None:
        self.began: Began | None = None
        self.attempt = 0
        self.still = 0
        self.epoch = 0
        self.deltas = ""
        self.index = 0
        self.steps: list[ExecutionStep] = []
        self.step: OpenStep | None = None
        self.ended: Ended | None = None
        self.usage = TokenUsage(prompt_tokens=0, completion_tokens=0)
        self.use = HistoryUse(policy=HistoryPolicy.window)
        self.attached = False
        self.dialog: list[Message] = []
        self.inferences = 0
        self.invalid = 0
        self.pending: list[ToolCall] = []
        self.said: Said | None = None
        self.done: list[ToolCall] = []
        self.approvals: dict[str, Approval] = {}
        self.blocked: SafetyViolation | None = None
        self.below = Spent()
        self.children: list[ChildTurn] = []
        self.handed: tuple[str, str] | None = None
        self.back: str | None = None
        self._opened = 0

    @property
    def opening(self) -> Began:
        """The first record.

        Raises:
            InvalidRequest: the turn has not begun.
        """
        if self.began is None:
            raise InvalidRequest("a journal begins with the beginning of its turn")
        return self.began

    @property
    def spent(self) -> Spent:
        """What the turn has taken, together with those that it started and that have ended."""
        prices = self.began.agent.prices if self.began is not None else (0.0, 0.0)
        usage = self.usage
        own = Spent(
            self.inferences,
            usage.prompt_tokens + usage.completion_tokens,
            (usage.prompt_tokens * prices[0] + usage.completion_tokens * prices[1]) / 1000,
        )
        return added(own, self.below)

    @property
    def parent(self) -> TurnRef | None:
        """The turn that has started it, if one did."""
        origin = self.began.origin if self.began is not None else None
        return origin.lineage[-1] if origin is not None else None

    def _running(self, kind: ExecutionStepType) -> OpenStep:
        step = self.step
        if step is None or step.kind is not kind or step.check is not None or step.said is not None:
            raise InvalidRequest(f"no step of kind {kind} runs")
        return step

    def _uuid(self) -> str:
        """Return the id of the next step."""
        self._opened += 1
        return step_uuid(self.opening.agent.config.uuid, self.opening.turn, self._opened - 1)

    def _event(self, type_: Type, uuid: str, kind: ExecutionStepType, **fields: object) -> Event:
        event = Event(self.index, Chunk(type_, uuid, kind, **fields))  # type: ignore[arg-type]
        self.index += 1
        return event

    def _progress(self, step: OpenStep, **fields: object) -> Event:
        return self._event(Type.step_progress, step.uuid, step.kind, **fields)

    def _close(self, step: OpenStep, ended: ExecutionStep, **fields: object) -> Event:
        self.steps.append(ended)
        self.step = None
        return self._event(Type.step_end, step.uuid, step.kind, **fields)

    def shields(self, stage: ShieldStage) -> Shields:
        """Return which shields look at what in the step that runs; see `shields_of`."""
        if self.step is None or stage in self.step.checked:
            return {}
        return shields_of(self.opening.agent.config, stage, self.step, self.dialog)

    @property
    def withholds(self) -> bool:
        """Whether nobody may see what the model says before shields have."""
        return withholds(self.opening.agent.config.output_shields)


def step_uuid(agent: str, turn: str, number: int) -> str:
    """Return the id of a step: the same, whoever executes it."""
    return str(uuid5(NAMESPACE_OID, msgspec.json.encode([agent, turn, number]).decode()))
