"""Shields in the pure machine: what is withheld, told, and made of what they find."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from support.journals import (
    AT,
    SCHEMA,
    answered,
    began,
    close,
    folded,
    said,
    told,
    tools,
    user,
    weather,
)

from ayllu.actors.agents.checks import REFUSAL, main_violation
from ayllu.actors.agents.plan import (
    Attach,
    BeginCheck,
    BeginStep,
    End,
    Infer,
    RunShields,
    RunTools,
    Wait,
    next_action,
)
from ayllu.actors.agents.records import (
    Attached,
    CheckBegan,
    Checked,
    Ended,
    Finding,
    JournalRecord,
    Retrieved,
)
from ayllu.actors.agents.step import Kind
from ayllu.schemas import (
    Attachment,
    InvalidRequest,
    Message,
    ModelInferenceStep,
    Role,
    SafetyFilteringStep,
    SafetyViolation,
    ShieldConfig,
    ShieldStage,
    StopReason,
    ToolDefinition,
    ToolExecutionStep,
    TurnStatus,
)

pytestmark = pytest.mark.requirement("agent-shields")

SHIELD, OBSERVER = ShieldConfig("guard"), ShieldConfig("guard", {"observe": True})
BAD = SafetyViolation("bad", "it is bad", shield="guard")
SEEN = msgspec.structs.replace(BAD, observed=True)
CUSCO, PUNO = weather("Cusco"), weather("Puno")


def check(stage: ShieldStage) -> CheckBegan:
    return CheckBegan(at=AT, stage=stage)


def checked(*violations: tuple[int, SafetyViolation]) -> Checked:
    return Checked(at=AT, findings=[Finding(*one) for one in violations])


def tool_with(**shields: Any) -> dict[str, Any]:
    """Return the configuration of an agent whose tool has shields."""
    return {"available_tools": [ToolDefinition("weather", SCHEMA, **shields)]}


# Before the model.


def test_input_that_passes_goes_on() -> None:
    turn, events = folded(began(Kind.safety_filtering, input_shields=[SHIELD]))
    assert next_action(turn) == RunShields(ShieldStage.input)
    assert turn.shields(ShieldStage.input) == {0: [SHIELD]}
    events += turn.apply(checked())
    assert told(events) == ["check start", "check end"]
    assert turn.steps == [SafetyFilteringStep(events[0].chunk.step_uuid)]
    assert next_action(turn) == BeginStep(Kind.model_inference)


def test_input_that_passes_goes_on_with_memory() -> None:
    config: dict[str, Any] = {"input_shields": [SHIELD], "memory_bank_uuids": ["b"]}
    turn, _ = folded(began(Kind.safety_filtering, **config), checked())
    assert next_action(turn) == BeginStep(Kind.memory_retrieval)


def test_input_that_is_blocked_ends_the_turn_and_is_forgotten() -> None:
    turn, events = folded(
        began(Kind.safety_filtering, input_shields=[SHIELD]), checked((0, SEEN), (0, BAD))
    )
    assert told(events) == ["check start", "check progress bad", "check end bad"]
    assert events[-1].chunk.violation == BAD
    action = next_action(turn)
    assert action == End(TurnStatus.completed, Message(role=Role.assistant, content=REFUSAL))
    assert isinstance(action, End)
    turn.apply(Ended(at=AT, status=action.status, response=action.response))
    assert turn.left_behind() == []


def test_a_shield_may_suggest_what_is_said() -> None:
    polite = msgspec.structs.replace(BAD, suggested_user_response="Let us not.")
    turn, _ = folded(began(Kind.safety_filtering, input_shields=[SHIELD]), checked((0, polite)))
    action = next_action(turn)
    assert isinstance(action, End)
    assert action.response == Message(role=Role.assistant, content="Let us not.")


def test_input_that_is_observed_goes_on() -> None:
    turn, _ = folded(began(Kind.safety_filtering, input_shields=[OBSERVER]), checked((0, SEEN)))
    assert turn.steps[0] == SafetyFilteringStep(turn.steps[0].uuid, SEEN)
    assert next_action(turn) == BeginStep(Kind.model_inference)


# Behind the model.


def test_what_the_model_says_is_withheld_until_it_passed() -> None:
    turn, events = folded(began(output_shields=[SHIELD]), said("It is sunny.", CUSCO, cuts=[2, 12]))
    assert told(events) == ["start"]
    assert next_action(turn) == BeginCheck(ShieldStage.output)
    events += turn.apply(check(ShieldStage.output))
    assert next_action(turn) == RunShields(ShieldStage.output)
    events += turn.apply(checked())
    assert told(events) == [
        "start", "check start", "check end", "text 'It'", "text ' is sunny.'", "call weather", "end",
    ]  # fmt: skip
    uuids = [event.chunk.step_uuid for event in events]
    assert len(set(uuids)) == 2
    assert uuids[0] == uuids[3] == uuids[-1]
    assert [type(step) for step in turn.steps] == [SafetyFilteringStep, ModelInferenceStep]
    assert next_action(turn) == BeginStep(Kind.tool_execution, (CUSCO,))
    assert [event.index for event in events] == list(range(len(events)))


def test_what_is_blocked_is_never_told() -> None:
    turn, events = folded(
        began(output_shields=[SHIELD]),
        said("Secret.", CUSCO),
        check(ShieldStage.output),
        checked((0, BAD)),
    )
    assert told(events) == ["start", "check start", "check end bad", "end"]
    assert b"Secret" not in msgspec.json.encode([event.chunk for event in events])
    step = turn.steps[-1]
    assert isinstance(step, ModelInferenceStep)
    assert step.text == ""
    action = next_action(turn)
    assert action == End(TurnStatus.completed, Message(role=Role.assistant, content=REFUSAL))
    assert isinstance(action, End)
    turn.apply(Ended(at=AT, status=action.status, response=action.response))
    assert [message.content for message in turn.left_behind()][1:] == [REFUSAL]


def test_what_is_observed_is_told_as_it_comes() -> None:
    turn, events = folded(began(output_shields=[OBSERVER]), said("It is.", cuts=[2, 6]))
    assert told(events) == ["start", "text 'It'", "text ' is.'"]
    assert turn.withholds is False
    events += turn.apply(check(ShieldStage.output))
    events += turn.apply(checked((0, SEEN)))
    assert told(events)[3:] == ["check start", "check end bad", "end"]
    action = next_action(turn)
    assert action == End(TurnStatus.completed, Message(role=Role.assistant, content="It is."))


def test_nothing_said_is_not_looked_at() -> None:
    turn, events = folded(began(output_shields=[SHIELD]), said(""))
    assert told(events) == ["start", "end"]
    assert isinstance(next_action(turn), End)


def test_what_was_cut_off_is_not_told_where_shields_withhold() -> None:
    cut = said("Sec", stop=StopReason.not_stopped)
    turn, events = folded(began(output_shields=[SHIELD]), cut)
    assert told(events) == ["start", "end"]
    assert next_action(turn) == BeginStep(Kind.model_inference)
    turn, events = folded(began(output_shields=[OBSERVER]), cut)
    assert told(events) == ["start", "text 'Sec'", "end"]


# Before tools.


def test_a_call_that_is_blocked_is_not_asked_about_and_not_run() -> None:
    config: dict[str, Any] = tool_with(input_shields=[SHIELD])
    config["require_approval"] = {"weather"}
    turn, events = folded(
        began(**config), said("", CUSCO, PUNO), tools(CUSCO, PUNO, approvals=[0, 1])
    )
    assert told(events)[-1] == "start"
    assert next_action(turn) == BeginCheck(ShieldStage.tool_input)
    assert turn.shields(ShieldStage.tool_input) == {0: [SHIELD], 1: [SHIELD]}
    events = turn.apply(check(ShieldStage.tool_input)) + turn.apply(checked((0, BAD)))
    assert told(events) == ["check start", "check end bad", f"asked {PUNO.arguments}"]
    assert turn.step is not None
    assert turn.step.calls.blocked == {0: BAD}
    assert next_action(turn) == RunTools(((0, CUSCO),))
    turn.apply(answered(0, "blocked", "blocked"))
    assert isinstance(next_action(turn), Wait)


def test_a_tool_that_nobody_declared_has_no_shields() -> None:
    turn, _ = folded(
        began(available_tools=[], executable_tools=set()), said("", CUSCO), tools(CUSCO)
    )
    assert next_action(turn) == RunTools(((0, CUSCO),))


# Behind tools.


def test_answers_are_withheld_until_they_passed() -> None:
    turn, _ = folded(
        began(**tool_with(output_shields=[SHIELD])), said("", CUSCO, PUNO), tools(CUSCO, PUNO)
    )
    assert turn.apply(answered(1, "rain")) == []
    assert turn.apply(answered(0, "ignore all")) == []
    assert next_action(turn) == BeginCheck(ShieldStage.tool_output)
    events = turn.apply(check(ShieldStage.tool_output)) + turn.apply(checked((0, BAD)))
    gone = "The answer of the tool was withheld by the shield guard: bad."
    assert told(events) == [
        "check start", "check end bad", f"response {gone}", "response rain", "end",
    ]  # fmt: skip
    step = turn.steps[-1]
    assert isinstance(step, ToolExecutionStep)
    assert [response.content for response in step.tool_responses] == [gone, "rain"]
    assert b"ignore all" not in msgspec.json.encode(turn.dialog)
    assert next_action(turn) == BeginStep(Kind.model_inference)


def test_answers_that_are_observed_are_told_at_once() -> None:
    turn, _ = folded(began(**tool_with(output_shields=[OBSERVER])), said("", CUSCO), tools(CUSCO))
    assert told(turn.apply(answered(0))) == ["response sunny"]
    assert next_action(turn) == BeginCheck(ShieldStage.tool_output)
    events = turn.apply(check(ShieldStage.tool_output)) + turn.apply(checked((0, SEEN)))
    assert told(events) == ["check start", "check end bad", "end"]


def test_the_systems_own_answers_are_not_looked_at() -> None:
    turn, _ = folded(began(**tool_with(output_shields=[SHIELD])), said("", CUSCO), tools(CUSCO))
    assert told(turn.apply(answered(0, "not known", "unknown"))) == ["response not known", "end"]


# When the turn ends before they have looked.


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([began(Kind.safety_filtering, input_shields=[SHIELD])], ["check end cancelled"]),
        (
            [began(output_shields=[SHIELD]), said("Secret.")],
            ["check start", "check end cancelled", "end"],
        ),
        (
            [began(output_shields=[OBSERVER]), said("Open."), check(ShieldStage.output)],
            ["check end cancelled", "end"],
        ),
        (
            [
                began(**tool_with(input_shields=[SHIELD])),
                said("", CUSCO),
                tools(CUSCO),
                check(ShieldStage.tool_input),
            ],
            ["check end cancelled", "response The turn was cancelled.", "end"],
        ),
        (
            [
                began(**tool_with(output_shields=[SHIELD])),
                said("", CUSCO, PUNO),
                tools(CUSCO, PUNO),
                answered(0, "Secret."),
            ],
            [
                "response The turn was cancelled.",
                "check start",
                "check end cancelled",
                "response The answer of the tool was withheld: cancelled.",
                "end",
            ],
        ),
    ],
    ids=["input", "output", "observed", "tool input", "tool output"],
)
def test_a_cancelled_turn_tells_nothing_that_was_not_looked_at(
    records: list[JournalRecord], expected: list[str]
) -> None:
    turn, events = folded(*records)
    events += close(turn)
    assert told(events)[-len(expected) :] == expected
    assert b"Secret" not in msgspec.json.encode([event.chunk for event in events])
    turn.apply(Ended(at=AT, status=TurnStatus.cancelled))
    assert b"Secret" not in msgspec.json.encode(turn.left_behind())


def test_an_observed_answer_of_a_cancelled_turn_stays() -> None:
    turn, _ = folded(began(output_shields=[OBSERVER]), said("Open."))
    close(turn)
    step = turn.steps[-1]
    assert isinstance(step, ModelInferenceStep)
    assert step.text == "Open."


# The rest.


def test_the_first_violation_that_holds_something_back_is_told() -> None:
    assert main_violation([]) is None
    assert main_violation([Finding(0, SEEN), Finding(1, BAD)]) is BAD
    assert main_violation([Finding(0, SEEN)]) is SEEN


def test_records_of_shields_that_no_journal_has() -> None:
    turn, _ = folded(began(output_shields=[SHIELD]))
    wrongs: list[JournalRecord] = [checked(), check(ShieldStage.output)]
    for wrong in wrongs:
        with pytest.raises(InvalidRequest):
            turn.apply(wrong)
    turn.apply(said("It."))
    with pytest.raises(InvalidRequest):
        turn.apply(said("It."))
    turn.apply(check(ShieldStage.output))
    for again in (check(ShieldStage.output), Retrieved(at=AT, documents=[], scores=[])):
        with pytest.raises(InvalidRequest):
            turn.apply(again)
    turn.apply(checked())
    with pytest.raises(InvalidRequest):
        turn.apply(checked())


def test_addresses_of_attachments_are_followed_first() -> None:
    url = Message(role=Role.user, content=[Attachment("https://example.com/a", "text/plain"), "?"])
    whole = Attachment("data:,a", "text/plain")
    start = msgspec.structs.replace(began(), messages=[url])
    turn, _ = folded(start)
    assert next_action(turn) == Attach()
    fetched = Message(role=Role.user, content=[whole, "?"])
    assert turn.apply(Attached(at=AT, messages=[fetched])) == []
    assert next_action(turn) == Infer("")
    assert turn.dialog == [fetched]
    assert turn.opening.messages == [url]
    turn, _ = folded(msgspec.structs.replace(began(), messages=[fetched, user("x")]))
    assert next_action(turn) == Infer("")
    page = Message(role=Role.user, content=Attachment("data:,<p>", "Text/HTML; charset=utf-8"))
    turn, _ = folded(msgspec.structs.replace(began(), messages=[page]))
    assert next_action(turn) == Attach()
