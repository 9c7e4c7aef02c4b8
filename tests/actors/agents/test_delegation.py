"""Calls of sub-agents in the pure machine: tasks, what each may take, and what their answers come to."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.journals import AT, began, folded, said, tools

from ayllu.actors.agents.allotting import (
    BeginTask,
    Gather,
    RefuseTask,
    SplitCall,
    next_delegation,
)
from ayllu.actors.agents.budget import LEAST_SECONDS, allotted, exceeded, left, without
from ayllu.actors.agents.delegation import bound, described, schema_of, tasks_of
from ayllu.actors.agents.plan import BeginStep, Delegate, End, Wait, next_action
from ayllu.actors.agents.records import (
    Answered,
    Checked,
    Delegated,
    JournalRecord,
    Returned,
    Split,
    Task,
)
from ayllu.actors.agents.step import Kind
from ayllu.actors.agents.turn import Turn
from ayllu.schemas import (
    BudgetExceeded,
    Delegation,
    ExecutionStepType,
    InvalidRequest,
    Limits,
    ShieldConfig,
    Spent,
    SubAgent,
    ToolCall,
    ToolResponse,
    TurnStatus,
    stricter,
)

ASK = SubAgent("ask", ["bo"], kind=Delegation.fan_out, at_once=2)
CALL = ToolCall("ask", {"tasks": [{"message": "x"}] * 3})
HAND = SubAgent("transfer", ["bo"], kind=Delegation.hand_off)


def opened(*subs: SubAgent, limits: Limits = Limits(), **config: Any) -> JournalRecord:  # noqa: B008
    """Return the beginning of a turn of an agent with sub-agents."""
    first = began(sub_agents=list(subs), **config)
    record = msgspec.structs.replace(first.agent, tools=[*first.agent.tools, *map(bound, subs)])
    return msgspec.structs.replace(first, agent=record, limits=limits)


def asked(*calls: ToolCall, limits: Limits = Limits()) -> Turn:  # noqa: B008
    """Return a turn that is to run calls."""
    turn, _ = folded(opened(ASK, HAND, limits=limits), said("", *calls), tools(*calls))
    return turn


def returned(task: int, status: TurnStatus = TurnStatus.completed, **fields: Any) -> Returned:
    return Returned(at=AT, call=0, task=task, status=status, **fields)


@pytest.mark.requirement("team-fan-out")
def test_tasks_begin_as_many_as_may_run_and_are_gathered() -> None:
    turn = asked(CALL)
    assert next_action(turn) == Delegate()
    assert next_delegation(turn, AT) == SplitCall(0)
    turn.apply(Split(at=AT, call=0, tasks=[Task("bo", "x")] * 3))
    for number in range(2):
        todo = next_delegation(turn, AT)
        assert isinstance(todo, BeginTask)
        assert todo.number == number
        [event] = turn.apply(Delegated(at=AT, call=0, task=number, limits=todo.limits))
        assert event.chunk.child_turn == turn.children[number]
    assert next_delegation(turn, AT) is None
    assert next_action(turn) == Wait(turn.deadline)
    turn.apply(returned(1, text="two", spent=Spent(1, 10, 0.5)))
    todo = next_delegation(turn, AT)
    assert isinstance(todo, BeginTask)
    assert todo.number == 2
    turn.apply(returned(2, TurnStatus.failed))
    turn.apply(returned(0, text="one"))
    assert next_delegation(turn, AT) == Gather(0)
    assert turn.spent == Spent(2, 17, 0.5)
    response = ToolResponse("ask", "gathered")
    [answer, _] = turn.apply(Answered(at=AT, call=0, response=response))
    assert answer.chunk.call == 0


@pytest.mark.requirement("team-fan-out")
def test_no_journal_has_a_task_twice() -> None:
    turn = asked(CALL)
    with pytest.raises(InvalidRequest):
        turn.apply(Delegated(at=AT, call=0, task=0))
    turn.apply(Split(at=AT, call=0, tasks=[Task("bo", "x")]))
    with pytest.raises(InvalidRequest):
        turn.apply(Split(at=AT, call=0, tasks=[Task("bo", "x")]))
    turn.apply(Delegated(at=AT, call=0, task=0))
    with pytest.raises(InvalidRequest):
        turn.apply(Delegated(at=AT, call=0, task=0))
    turn.apply(returned(0))
    with pytest.raises(InvalidRequest):
        turn.apply(returned(0))


@pytest.mark.requirement("team-limits")
def test_what_is_used_up_begins_nothing() -> None:
    turn = asked(CALL, limits=Limits(steps=2))
    turn.apply(Split(at=AT, call=0, tasks=[Task("bo", "x")]))
    todo = next_delegation(turn, AT)
    assert isinstance(todo, RefuseTask)
    assert isinstance(todo.error, BudgetExceeded)
    turn = asked(CALL, limits=Limits(depth=0))
    turn.apply(Split(at=AT, call=0, tasks=[Task("bo", "x")]))
    todo = next_delegation(turn, AT)
    assert isinstance(todo, RefuseTask)
    assert "too deep" in todo.error.message


@pytest.mark.requirement("team-limits")
def test_what_others_leave_is_waited_for() -> None:
    turn = asked(CALL, CALL, limits=Limits(steps=4))
    turn.apply(Split(at=AT, call=0, tasks=[Task("bo", "x")]))
    turn.apply(Delegated(at=AT, call=0, task=0, limits=Limits(steps=2)))
    turn.apply(Split(at=AT, call=1, tasks=[Task("bo", "y")]))
    # Of three steps that are left, two may be taken by the first one, and one is kept.
    assert next_delegation(turn, AT) is None
    assert next_action(turn) == Wait(turn.deadline)
    turn.apply(returned(0, spent=Spent(1, 0, 0.0)))
    assert next_delegation(turn, AT) == Gather(0)
    turn.apply(Answered(at=AT, call=0, response=ToolResponse("ask", "one")))
    todo = next_delegation(turn, AT)
    assert isinstance(todo, BeginTask)
    assert (todo.place, todo.limits.steps) == (1, 1)


@pytest.mark.requirement("team-hand-off")
def test_a_conversation_that_was_handed_over_goes_there_after_the_shields() -> None:
    first = opened(HAND, input_shields=[ShieldConfig("s")])
    call = ToolCall("transfer", {})
    first = msgspec.structs.replace(first, calls=[call], step=ExecutionStepType.safety_filtering)
    turn, _ = folded(first, Checked(at=AT))
    assert next_action(turn) == BeginStep(Kind.tool_execution, (call,))
    first = msgspec.structs.replace(first, step=ExecutionStepType.tool_execution)
    turn, _ = folded(first)
    assert next_delegation(turn, AT) == SplitCall(0)


@pytest.mark.requirement("team-hand-off")
@pytest.mark.parametrize("back", [True, False])
def test_what_the_other_agent_answers_is_the_answer_unless_it_hands_back(back: bool) -> None:
    call = ToolCall("transfer", {"message": "note"})
    turn = asked(call)
    turn.apply(Split(at=AT, call=0, tasks=[Task("bo", "note")]))
    turn.apply(Delegated(at=AT, call=0, task=0))
    turn.apply(returned(0, text="theirs", back=back))
    turn.apply(Answered(at=AT, call=0, response=ToolResponse("transfer", "theirs")))
    action = next_action(turn)
    assert isinstance(action, BeginStep if back else End)
    if isinstance(action, End):
        assert action.response is not None
        assert action.response.content == "theirs"


@pytest.mark.requirement("team-call")
@pytest.mark.parametrize("kind", list(Delegation))
def test_models_are_told_what_sub_agents_take(kind: Delegation) -> None:
    sub = SubAgent("ask", ["bo", "cy"][: 2 if kind is Delegation.fan_out else 1], kind=kind)
    assert "bo" in described(sub)
    assert described(SubAgent("ask", ["bo"], kind=kind, description="Knows.")) == "Knows."
    one = {"message": "x", "agent": "cy"}
    arguments = {"tasks": [one]} if kind is Delegation.fan_out else {"message": "x"}
    assert set(schema_of(sub)["properties"]) == set(arguments)
    [task] = tasks_of(sub, arguments)
    assert task == Task("cy" if kind is Delegation.fan_out else "bo", "x")


limit = st.none() | st.integers(0, 50)
LIMITS = st.builds(Limits, tokens=limit, steps=limit, cost=st.none() | st.floats(0, 9, width=16))


@pytest.mark.requirement("team-limits")
@given(LIMITS, LIMITS, st.lists(st.floats(0, 1), max_size=6), st.integers(0, 3))
def test_turns_that_keep_to_what_they_are_allotted_exceed_nothing_together(
    limits: Limits, most: Limits, shares: list[float], own: int
) -> None:
    spent = Spent(own, own, float(own))
    pool = left(limits, spent, 0)
    parts = []
    for number in range(len(shares)):
        part = allotted(pool, most, len(shares) - number)
        parts.append(part)
        pool = without(pool, part)
    for name in ("tokens", "steps", "cost"):
        whole = getattr(limits, name)
        taken = [getattr(part, name) for part in parts]
        if whole is None:
            assert taken == [getattr(most, name)] * len(parts)
        else:
            assert sum(taken) <= max(0, whole - own) + 1e-9
        if getattr(most, name) is not None:
            assert all(value <= getattr(most, name) for value in taken)


@pytest.mark.requirement("team-limits")
def test_limits_that_are_reached_are_named() -> None:
    assert exceeded(Limits(), Spent(9, 9, 9)) is None
    for name, word in (("steps", "2 steps of models"), ("tokens", "2 tokens"), ("cost", "2 cost")):
        error = exceeded(Limits(**{name: 2}), Spent(2, 2, 2.0))
        assert error is not None
        assert word in error.message
        assert exceeded(Limits(**{name: 3}), Spent(2, 2, 2.0)) is None
    assert left(Limits(seconds=5), Spent(), 2).seconds == 3
    assert left(Limits(seconds=5), Spent(), 20).seconds == LEAST_SECONDS
    assert stricter(Limits(steps=5, tokens=1), Limits(steps=3)) == Limits(steps=3, tokens=1)
