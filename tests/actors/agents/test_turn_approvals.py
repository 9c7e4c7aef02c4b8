"""Calls that wait for people, in the pure machine."""

from __future__ import annotations

from typing import Any

import pytest
from support.journals import AT, answered, began, close, folded, said, told, tools, weather

from ayllu.actors.agents.plan import BeginStep, RunTools, Wait, next_action
from ayllu.actors.agents.records import Claimed, Decided, Ended
from ayllu.actors.agents.step import Kind
from ayllu.actors.agents.steps import call_id
from ayllu.actors.agents.turn import Turn
from ayllu.schemas import (
    ApprovalDecision,
    InvalidRequest,
    ToolExecutionStep,
    TurnStatus,
)

pytestmark = pytest.mark.requirement("agent-approvals")

CUSCO, PUNO = weather("Cusco"), weather("Puno")
CONFIG: dict[str, Any] = {"require_approval": {"weather"}, "approval_timeout": 60.0}


def decided(
    place: int,
    decision: ApprovalDecision = ApprovalDecision.approve,
    **fields: Any,
) -> Decided:
    return Decided(at=AT, call=place, decision=decision, **fields)


def status_of(turn: Turn) -> TurnStatus:
    return turn.status


def asked(approvals: list[int]) -> Turn:
    turn, _ = folded(
        began(**CONFIG), said("", CUSCO, PUNO), tools(CUSCO, PUNO, approvals=approvals)
    )
    return turn


def test_calls_wait_until_they_are_decided() -> None:
    turn, events = folded(
        began(**CONFIG), said("", CUSCO, PUNO), tools(CUSCO, PUNO, approvals=[0, 1])
    )
    assert told(events)[-2:] == [f"asked {CUSCO.arguments}", f"asked {PUNO.arguments}"]
    assert next_action(turn) == Wait(AT + 60)
    assert status_of(turn) is TurnStatus.waiting
    assert [one.tool_call for one in turn.waiting] == [CUSCO, PUNO]
    assert {one.expires_at.timestamp() for one in turn.waiting} == {AT + 60}
    events = turn.apply(decided(1))
    assert told(events) == [f"approve {PUNO.arguments}"]
    assert next_action(turn) == RunTools(((1, PUNO),))
    assert status_of(turn) is TurnStatus.running
    turn.apply(answered(1))
    assert next_action(turn) == Wait(AT + 60)
    turn.apply(decided(0, ApprovalDecision.deny, reason="too far"))
    assert next_action(turn) == RunTools(((0, CUSCO),))
    events = turn.apply(answered(0, "no", "denied"))
    assert told(events) == ["response no", "end"]
    assert turn.waiting == []
    assert next_action(turn) == BeginStep(Kind.model_inference)
    known = turn.approvals[next(iter(turn.approvals))]
    assert (known.decision, known.reason) == (ApprovalDecision.deny, "too far")


def test_what_needs_no_decision_runs_meanwhile() -> None:
    turn = asked([1])
    assert next_action(turn) == RunTools(((0, CUSCO),))
    assert status_of(turn) is TurnStatus.running
    turn.apply(answered(0))
    assert status_of(turn) is TurnStatus.waiting
    assert [one.tool_call for one in turn.waiting] == [PUNO]


def test_other_arguments_take_the_place_of_the_models() -> None:
    turn = asked([0])
    turn.apply(answered(1))
    events = turn.apply(decided(0, arguments={"city": "Ica"}))
    assert events[0].chunk.approval is not None
    assert events[0].chunk.approval.changed
    assert next_action(turn) == RunTools(((0, weather("Ica")),))
    turn.apply(answered(0))
    step = turn.steps[-1]
    assert isinstance(step, ToolExecutionStep)
    assert step.tool_calls == [weather("Ica"), PUNO]
    assert turn.done == [weather("Ica"), PUNO]


def test_a_call_that_was_let_go_after_a_takeover_was_never_in_flight() -> None:
    turn = asked([0, 1])
    turn.apply(decided(1))
    turn.apply(Claimed(at=AT, attempt=2, executor="b", epoch=1))
    turn.apply(decided(0))
    assert next_action(turn) == RunTools(((0, CUSCO), (1, PUNO)), frozenset({1}))


def test_a_cancelled_turn_answers_calls_that_wait() -> None:
    turn = asked([0, 1])
    assert told(close(turn)) == ["response The turn was cancelled."] * 2 + ["end"]
    turn.apply(Ended(at=AT, status=TurnStatus.cancelled))
    assert turn.waiting == []
    assert status_of(turn) is TurnStatus.cancelled


def test_decisions_that_no_journal_has() -> None:
    turn = asked([0])
    for wrong in (decided(1), decided(7)):
        with pytest.raises(InvalidRequest):
            turn.apply(wrong)
    turn.apply(decided(0))
    with pytest.raises(InvalidRequest):
        turn.apply(decided(0))


def test_names_of_calls_tell_step_and_place() -> None:
    turn = asked([0, 1])
    assert turn.step is not None
    assert [one.call_id for one in turn.waiting] == [call_id(turn.step, 0), call_id(turn.step, 1)]
