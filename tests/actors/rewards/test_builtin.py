"""The rewards that come along."""

from __future__ import annotations

from typing import Any

import pytest
from support.rewards import answers, dialog, error_of, results_of, said, values_of

from ayllu.actors.rewards.programs.builtin import exact_answer, json_schema, tool_call
from ayllu.actors.rewards.registry import build_reward
from ayllu.actors.rewards.specs import ProgramSpec
from ayllu.actors.tool_calls import render_calls
from ayllu.bus import local_bus
from ayllu.schemas import Attachment, InvalidRequest, Message, Role, ToolCall, Unsupported

pytestmark = pytest.mark.requirement("reward-verifiable")

CALL = ToolCall("weather", {"city": "Cusco", "days": 2})
WANTED = {"tool_name": "weather", "arguments": {"days": 2.0, "city": "Cusco"}}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        ("Paris", "paris", 1),
        ("  The  Andes.\n", "the andes", 1),
        ("\uff30aris", "Paris", 1),
        ("Lyon", "Paris", 0),
        ("Paris, France", "Paris", 0),
        ("42", 42, 1),
        ("42.0", 42, 1),
        ("1,000", 1000, 1),
        ("10,00", 1000, 0),
        ("-3", -3, 1),
        ("3", -3, 0),
        ("0.1", 0.1, 1),
        ("nan", "NaN", 1),
        ("1e3", 1000, 0),
        ("0.00001", 0.00001, 1),
        ("1e-05", 0.00001, 1),
        ("100,000,000,000,000,000.0", 1e17, 1),
        ("true", True, 1),
        ("b", ["a", "b"], 1),
        ("c", ["a", "b"], 0),
        ("", "", 1),
        ("9" * 5000, 1, 0),
    ],
)
def test_exact_answers(text: str, reference: Any, score: float) -> None:
    assert exact_answer(dialog(), said(text), reference) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [("It is #### 41, no: #### 42", 1), ("42", 0), ("#### 42 and #### 1", 0), ("", 0)],
)
def test_the_last_match_of_a_pattern_is_the_answer(text: str, score: float) -> None:
    assert exact_answer(dialog(), said(text), 42, pattern=r"#### (\d+)") == score


def test_a_group_that_took_no_part_is_no_answer() -> None:
    assert exact_answer(dialog(), said("b"), "b", pattern="(a)|b") == 0


@pytest.mark.parametrize("reference", [None, [], {"a": 1}, [None]])
def test_without_a_reference_there_is_no_exact_answer(reference: Any) -> None:
    with pytest.raises(InvalidRequest, match="reference"):
        exact_answer(dialog(), said("x"), reference)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"n": 1}', 1),
        (' {"n": 1.0}\n', 1),
        ('{"n": "1"}', 0),
        ("{}", 0),
        ('Here: {"n": 1}', 0),
        ("[" * 100_000, 0),
        ("", 0),
    ],
)
def test_json_that_fits(text: str, score: float) -> None:
    assert json_schema(dialog(), said(text), None, schema=SCHEMA) == score
    assert json_schema(dialog(), said(text), SCHEMA) == score


@pytest.mark.parametrize("reference", [None, 1, {"type": "nonsense"}])
def test_without_a_schema_nothing_fits(reference: Any) -> None:
    with pytest.raises(InvalidRequest, match="reference"):
        json_schema(dialog(), said("{}"), reference)


def test_schemas_fetch_nothing_and_may_not_run_away() -> None:
    with pytest.raises(InvalidRequest, match="followed"):
        json_schema(dialog(), said("{}"), {"$ref": "http://127.0.0.1:1/x"})
    assert json_schema(dialog(), said("{}"), {"$ref": "#"}) == 0


@pytest.mark.parametrize(
    ("text", "reference", "score"),
    [
        (render_calls([CALL]), None, 1),
        (render_calls([CALL]), WANTED, 1),
        (f"\n{render_calls([CALL])}\n", WANTED, 1),
        (render_calls([ToolCall("weather", {"city": "Cusco", "days": True})]), WANTED, 0),
        (render_calls([ToolCall("weather", {"city": "Cusco"})]), WANTED, 0),
        (render_calls([ToolCall("time", CALL.arguments)]), WANTED, 0),
        (render_calls([CALL, CALL]), WANTED, 0),
        (f"I call: {render_calls([CALL])}", None, 0),
        ("<tool_call>nonsense</tool_call>", None, 0),
        ("weather(Cusco)", None, 0),
        ("", None, 0),
    ],
)
def test_tool_calls(text: str, reference: Any, score: float) -> None:
    assert tool_call(dialog(), said(text), reference) == score


def test_a_call_that_was_read_already_counts_too() -> None:
    answer = Message(role=Role.assistant, content="", tool_calls=[CALL])
    assert tool_call(dialog(), answer, WANTED) == 1
    both = Message(role=Role.assistant, content=render_calls([CALL]), tool_calls=[CALL])
    assert tool_call(dialog(), both, WANTED) == 0


def test_a_reference_that_is_no_call_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        tool_call(dialog(), said(""), {"name": "weather"})


def test_an_attachment_that_cannot_be_read_is_an_error() -> None:
    picture = Attachment("https://example.com/x.png", "image/png")
    with pytest.raises(Unsupported):
        exact_answer(dialog(), Message(role=Role.assistant, content=picture), "x")


@pytest.mark.asyncio
@pytest.mark.requirement("reward-hangs")
@pytest.mark.parametrize(
    ("function", "params", "reference", "evil"),
    [
        ("exact_answer", {"pattern": r"^(a+)+$"}, "x", "a" * 40 + "b"),
        ("json_schema", {}, {"pattern": r"^(a+)+$"}, '"' + "a" * 40 + 'b"'),
    ],
)
async def test_a_pattern_that_takes_for_ever_costs_its_answer_only(
    function: str, params: dict[str, Any], reference: Any, evil: str
) -> None:
    spec = ProgramSpec(name="p", function=function, params=params, timeout=0.5)
    async with local_bus() as bus, build_reward(spec, bus, [spec]) as engine:
        asked = answers('"a"', evil, '"a"', reference=reference)
        first, hung, last = await results_of(engine, asked)
    assert error_of(hung).info.code == "deadline_exceeded"
    assert values_of([first]) == values_of([last])
