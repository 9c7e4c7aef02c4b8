"""Traces of turns: when what happened, from the records of their journals."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TypeVar

import msgspec
import pytest
from support.journals import AT, answered, began, inference, passage, said, tools, weather

from ayllu.actors.agents.records import (
    CheckBegan,
    Checked,
    Claimed,
    Decided,
    Delegated,
    Ended,
    JournalRecord,
    Record,
    Retrieved,
    Returned,
    Split,
    Task,
)
from ayllu.actors.agents.state import step_uuid
from ayllu.actors.agents.step import Kind
from ayllu.actors.agents.trace import Tracing, joined
from ayllu.schemas import (
    ApprovalDecision,
    ChildTurn,
    Delegation,
    ErrorInfo,
    ShieldConfig,
    ShieldStage,
    Spent,
    StepTrace,
    SubAgent,
    TokenUsage,
    ToolCall,
    TurnStatus,
    TurnTrace,
)

pytestmark = pytest.mark.requirement("turn-trace")
R = TypeVar("R", bound=Record)
USAGE = TokenUsage(prompt_tokens=5, completion_tokens=2)


def at(seconds: float, record: R) -> R:
    return msgspec.structs.replace(record, at=AT + seconds)


def time(seconds: float) -> datetime:
    return datetime.fromtimestamp(AT + seconds, UTC)


def traced(*records: JournalRecord) -> TurnTrace:
    tracing = Tracing("al", "t")
    for record in records:
        tracing.take(record)
    told = tracing.told()
    assert told.ended is any(isinstance(record, Ended) for record in records)
    assert told.children == []
    assert joined(told, lambda _: None) == told.trace
    return told.trace


def spans(trace: TurnTrace) -> list[tuple[str, float, float | None]]:
    return [(step.step_type, *span(step)) for step in trace.steps]


def span(step: StepTrace) -> tuple[float, float | None]:
    ended = None if step.ended_at is None else step.ended_at.timestamp() - AT
    return step.began_at.timestamp() - AT, ended


def test_nothing_has_begun() -> None:
    assert traced() == TurnTrace("al", "t", TurnStatus.queued)


def test_a_turn_with_tools() -> None:
    trace = traced(
        began(),
        at(1, said("Let me see.", weather("Cusco"), weather("Lima"))),
        at(2, tools(weather("Cusco"), weather("Lima"))),
        at(3, answered(1, outcome="failed")),
        at(5, answered(0)),
        at(6, inference()),
        at(8, said()),
        Ended(at=AT + 8.5, status=TurnStatus.completed),
    )
    assert (trace.begun_at, trace.ended_at) == (time(0), time(8.5))
    assert trace.status is TurnStatus.completed
    assert trace.usage == TokenUsage(prompt_tokens=10, completion_tokens=4)
    assert trace.queued_seconds is None
    assert spans(trace) == [
        ("model_inference", 0, 1),
        ("tool_execution", 2, 5),
        ("model_inference", 6, 8),
    ]
    assert [step.uuid for step in trace.steps] == [step_uuid("al", "t", one) for one in range(3)]
    assert [step.usage for step in trace.steps] == [USAGE, None, USAGE]
    first, second = trace.steps[1].calls
    assert (first.tool_name, first.began_at, first.ended_at) == ("weather", time(2), time(5))
    assert (second.ended_at, second.outcome, first.outcome) == (time(3), "failed", "ok")
    assert (first.children, first.left_out) == ([], 0)


def test_what_runs_and_what_waits_has_no_end() -> None:
    asked: list[JournalRecord] = [
        began(),
        at(1, said("", weather("Cusco"), weather("Lima"))),
        at(2, tools(weather("Cusco"), weather("Lima"), approvals=[1])),
    ]
    trace = traced(*asked)
    assert trace.status is TurnStatus.running
    runs, waits = trace.steps[-1].calls
    assert (runs.began_at, runs.ended_at, runs.outcome) == (time(2), None, None)
    assert (waits.began_at, waits.ended_at, waits.outcome) == (None, None, None)
    assert trace.steps[-1].ended_at is None
    assert traced(*asked, at(3, answered(0))).status is TurnStatus.waiting
    decided = Decided(at=AT + 60, call=1, decision=ApprovalDecision.approve)
    trace = traced(*asked, at(3, answered(0)), decided, at(61, answered(1)))
    assert trace.steps[-1].calls[1].began_at == time(60)
    assert spans(trace)[-1] == ("tool_execution", 2, 61)


def test_shields_look_within_steps() -> None:
    shields = [ShieldConfig("code_scanner_guard")]
    trace = traced(
        began(Kind.safety_filtering, input_shields=shields, output_shields=shields),
        at(1, Checked(at=AT)),
        at(2, inference()),
        at(4, said()),
        at(5, CheckBegan(at=AT, stage=ShieldStage.output)),
        at(7, Checked(at=AT)),
    )
    assert spans(trace) == [
        ("safety_filtering", 0, 1),
        ("model_inference", 2, 7),
        ("safety_filtering", 5, 7),
    ]


def test_a_retrieval_and_what_a_turn_failed_in() -> None:
    trace = traced(
        began(Kind.memory_retrieval),
        at(1, Claimed(at=AT, attempt=2, executor="b", epoch=1)),
        at(2, Retrieved(at=AT, documents=[passage("d")], scores=[1.0])),
        Ended(at=AT + 3, status=TurnStatus.failed, error=ErrorInfo("internal", "broken")),
    )
    assert spans(trace) == [("memory_retrieval", 0, 2)]
    assert trace.attempts == 2
    assert trace.error == ErrorInfo("internal", "broken")


def test_how_long_it_waited_to_begin() -> None:
    tracing = Tracing("al", "t")
    tracing.take(began())
    assert tracing.told(AT - 2).trace.queued_seconds == 2
    assert tracing.told(AT + 2).trace.queued_seconds == 0, "clocks differ"


def test_the_turns_that_calls_have_started_stand_with_their_calls() -> None:
    subs = [SubAgent("ask", ["clerk", "boss"], kind=Delegation.fan_out)]
    asks = ToolCall("ask", {"tasks": []})
    tracing = Tracing("al", "t")
    step = step_uuid("al", "t", 1)
    for record in (
        began(sub_agents=subs),
        at(1, said("", weather("Cusco"), asks)),
        at(2, tools(weather("Cusco"), asks)),
        Split(at=AT + 2, call=1, tasks=[Task("clerk", "a"), Task("boss", "b"), Task("clerk", "c")]),
        Delegated(at=AT + 3, call=1, task=0),
        Delegated(at=AT + 4, call=1, task=1),
        Returned(
            at=AT + 6, call=1, task=0, status=TurnStatus.completed, spent=Spent(steps=1, tokens=9)
        ),
    ):
        tracing.take(record)
    told = tracing.told()
    [(first, _), _] = told.children
    asked = [(child.agent_uuid, when) for child, when in told.children]
    assert asked == [("clerk", AT + 3), ("boss", AT + 4)]

    def trace_of(child: ChildTurn) -> TurnTrace | None:
        assert (child.step_uuid, child.call, child.tool_name) == (step, 1, "ask")
        if child.agent_uuid == "boss":
            return None
        return TurnTrace(child.agent_uuid, child.turn_id, TurnStatus.completed)

    trace = joined(told, trace_of)
    tool, call = trace.steps[-1].calls
    assert (tool.children, tool.left_out) == ([], 0)
    assert [(child.agent_uuid, child.turn_id) for child in call.children] == [
        ("clerk", first.turn_id)
    ]
    assert call.left_out == 1
    assert trace.spent.tokens == 7 + 9
