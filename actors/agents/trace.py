"""From the records of a turn to its trace: when what happened in it. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from msgspec.structs import replace

from ...schemas import (
    CallTrace,
    ChildTurn,
    ExecutionStep,
    ExecutionStepType,
    ModelInferenceStep,
    StepTrace,
    TokenUsage,
    TurnTrace,
)
from .reader import described
from .records import JournalRecord
from .step import OpenStep
from .timeline import Timeline


@dataclass(slots=True)
class _Call:
    began: float | None = None
    ended: float | None = None
    outcome: str | None = None


@dataclass(slots=True)
class _Step:
    kind: ExecutionStepType
    began: float
    ended: float | None = None
    usage: TokenUsage | None = None
    names: list[str] = field(default_factory=list)
    calls: dict[int, _Call] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Traced:
    """What a journal tells.

    Attributes:
        trace: the trace, without the turns that it has started.
        children: these, with when each was asked for.
        ended: whether it has ended.
    """

    trace: TurnTrace
    children: list[tuple[ChildTurn, float]]
    ended: bool


TraceOf = Callable[[ChildTurn], TurnTrace | None]
"""Returns the trace of a turn that another one has started; None where there is none to tell."""


def joined(traced: Traced, trace_of: TraceOf) -> TurnTrace:
    """Return the trace of a turn with those of the turns that it has started, in their order."""
    traces: dict[tuple[str, int], list[TurnTrace | None]] = {}
    for child, _ in traced.children:
        traces.setdefault((child.step_uuid, child.call), []).append(trace_of(child))
    steps = [
        replace(
            step,
            calls=[
                _with_children(call, traces.get((step.uuid, place), []))
                for place, call in enumerate(step.calls)
            ],
        )
        for step in traced.trace.steps
    ]
    return replace(traced.trace, steps=steps)


def _with_children(call: CallTrace, traces: Sequence[TurnTrace | None]) -> CallTrace:
    children = [trace for trace in traces if trace is not None]
    return replace(call, children=children, left_out=len(traces) - len(children))


class Tracing:
    """The trace of a turn; feed it with `take`.

    Args:
        agent: the agent.
        turn: the turn.
    """

    def __init__(self, agent: str, turn: str) -> None:
        self._names = agent, turn
        self._timeline = Timeline()
        self._steps: dict[str, _Step] = {}
        self._children: list[tuple[ChildTurn, float]] = []

    def take(self, record: JournalRecord) -> None:
        """Take the next record of the turn's journal.

        Raises:
            InvalidRequest: no journal has this record here.
        """
        turn, at = self._timeline.turn, record.at
        before, ended = turn.step, len(turn.steps)
        self._timeline.record(record)
        # A record may end one step, but not begin another one.
        for step in (before, turn.step):
            if step is not None:
                self._note(step, at)
        for done in turn.steps[ended:]:
            self._end(done, at)
        self._children += [(child, at) for child in turn.children[len(self._children) :]]

    def _note(self, step: OpenStep, at: float) -> None:
        """Note what a record has made of the step that runs."""
        if step.check is not None:
            kind = ExecutionStepType.safety_filtering
            self._steps.setdefault(step.check.uuid, _Step(kind, at))
        noted = self._steps.setdefault(step.uuid, _Step(step.kind, at))
        noted.names = [call.tool_name for call in step.calls.wanted]
        for place in range(len(noted.names)):
            call = noted.calls.setdefault(place, _Call())
            if call.began is None and place in step.calls.released:
                call.began = at
            if call.ended is None and place in step.calls.outcomes:
                call.ended, call.outcome = at, step.calls.outcomes[place]

    def _end(self, done: ExecutionStep, at: float) -> None:
        step = self._steps[done.uuid]
        step.ended = at
        if isinstance(done, ModelInferenceStep):
            step.usage = done.usage

    def told(self, asked: float | None = None) -> Traced:
        """Return what the journal tells; ``asked`` is when another turn has started this one."""
        agent, name = self._names
        turn = described(agent, name, self._timeline)
        began = self._timeline.turn.began
        queued = max(0.0, began.at - asked) if began is not None and asked is not None else None
        trace = TurnTrace(
            agent_uuid=agent,
            turn_id=name,
            status=turn.status,
            begun_at=turn.begun_at,
            ended_at=turn.ended_at,
            queued_seconds=queued,
            attempts=self._timeline.turn.attempt,
            usage=turn.usage,
            spent=turn.spent,
            error=turn.error,
            parent=turn.parent,
            cause=turn.cause,
            steps=[_step(uuid, step) for uuid, step in self._steps.items()],
        )
        return Traced(trace, self._children, turn.ended_at is not None)


def _step(uuid: str, step: _Step) -> StepTrace:
    return StepTrace(
        uuid=uuid,
        step_type=step.kind,
        began_at=_time(step.began),
        ended_at=None if step.ended is None else _time(step.ended),
        usage=step.usage,
        calls=[
            CallTrace(
                tool_name=name,
                began_at=None if call.began is None else _time(call.began),
                ended_at=None if call.ended is None else _time(call.ended),
                outcome=call.outcome,
            )
            for name, call in zip(step.names, step.calls.values(), strict=True)
        ],
    )


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
