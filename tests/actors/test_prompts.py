"""Requests as prompts."""

from __future__ import annotations

from typing import Any

import pytest

from ayllu.actors.engines.engine import ChatMessage
from ayllu.actors.prompts import (
    chat_prompt,
    completion_prompt,
    forced_call_schema,
    parameters_schema,
)
from ayllu.actors.tool_calls import OPENING, render_calls
from ayllu.actors.untrusted import NOTE
from ayllu.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    Dialog,
    InvalidRequest,
    Message,
    Role,
    ToolCall,
    ToolDefinition,
    ToolResponse,
)

WEATHER = ToolDefinition(
    tool_name="get_weather", description="The weather of a city.", parameters={"city": "its name"}
)
ADD = ToolDefinition(tool_name="add", parameters={"a": {"type": "number"}, "b": {"type": "number"}})
USER = Message(role=Role.user, content="Hello")


def request(*messages: Message, **values: Any) -> ChatCompletionRequest:
    *history, last = messages or (USER,)
    return ChatCompletionRequest(
        model="m", dialog=Dialog(message=last, message_history=history or None), **values
    )


def roles(made: ChatCompletionRequest) -> list[str]:
    return [str(message.role) for message in chat_prompt(made).messages]


def test_a_dialog_keeps_its_order() -> None:
    system = Message(role=Role.system, content="Be short.")
    reply = Message(role=Role.assistant, content="Hi")
    prompt = chat_prompt(request(system, USER, reply, USER))
    assert [(m.role, m.text) for m in prompt.messages] == [
        ("system", "Be short."),
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "Hello"),
    ]
    assert not prompt.continues


@pytest.mark.requirement("tools-in-prompt")
def test_tools_stand_in_the_system_message() -> None:
    system = Message(role=Role.system, content="Be short.")
    for messages in ((USER,), (system, USER)):
        made = chat_prompt(request(*messages, available_tools=[WEATHER])).messages
        assert [m.role for m in made] == ["system", "user"]
        assert all(part in made[0].text for part in ("get_weather", "The weather", OPENING))
        assert made[0].text.startswith("Be short.") == (len(messages) == 2)


@pytest.mark.requirement("tools-in-prompt")
def test_without_tools_or_with_choice_none_they_are_not_mentioned() -> None:
    assert roles(request()) == ["user"]
    assert roles(request(available_tools=[WEATHER], tool_choice="none")) == ["user"]


@pytest.mark.requirement("tools-in-prompt")
def test_earlier_calls_and_their_answers_are_shown_in_the_same_format() -> None:
    call = ToolCall(tool_name="get_weather", arguments={"city": "Cusco"})
    called = Message(role=Role.assistant, content="", tool_calls=[call])
    response = ToolResponse(tool_name="get_weather", content="sunny")
    answered = Message(role=Role.tool, content="", tool_responses=[response])
    made = chat_prompt(request(USER, called, answered)).messages
    assert made[0] == ChatMessage("system", NOTE)
    assert made[2].text == render_calls([call])
    assert made[3].role == "tool"
    written = '{"name":"get_weather","untrusted_output":"sunny"}'
    assert made[3].text == f"<tool_response>{written}</tool_response>"


@pytest.mark.requirement("assistant-prefix")
def test_a_prefix_is_continued() -> None:
    prompt = chat_prompt(request(assistant_prefix="The answer "))
    assert prompt.continues
    assert (prompt.messages[-1].role, prompt.messages[-1].text) == ("assistant", "The answer ")
    assert not chat_prompt(request(assistant_prefix="")).continues


@pytest.mark.parametrize("role", [Role.user, Role.system, Role.tool])
def test_nothing_to_answer_is_refused(role: Role) -> None:
    with pytest.raises(InvalidRequest, match=r"dialog\.message"):
        chat_prompt(request(Message(role=role, content="")))


def test_an_answer_is_not_answered() -> None:
    with pytest.raises(InvalidRequest, match="assistant_prefix"):
        chat_prompt(request(USER, Message(role=Role.assistant, content="Hi")))


def test_a_completion_needs_text() -> None:
    assert completion_prompt(CompletionRequest(model="m", content="a")).text == "a"
    with pytest.raises(InvalidRequest, match="content"):
        completion_prompt(CompletionRequest(model="m", content=""))


@pytest.mark.requirement("tool-parameters")
def test_both_forms_of_parameters() -> None:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    assert parameters_schema(ToolDefinition(tool_name="t", parameters=schema)) == schema
    assert parameters_schema(WEATHER) == {
        "type": "object",
        "properties": {"city": {"description": "its name"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    assert parameters_schema(ToolDefinition(tool_name="t"))["properties"] == {}


@pytest.mark.requirement("tool-parameters")
def test_parameters_that_are_neither_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="'x' of 't'"):
        parameters_schema(ToolDefinition(tool_name="t", parameters={"x": 3}))


@pytest.mark.requirement("tool-calls-forced")
def test_a_choice_forces_a_schema() -> None:
    tools = {"available_tools": [WEATHER, ADD]}
    for free in (None, "auto", "none"):
        assert forced_call_schema(request(**tools, tool_choice=free)) is None
    one = forced_call_schema(request(**tools, tool_choice="add"))
    assert one is not None
    assert one["properties"]["name"] == {"const": "add"}
    required = forced_call_schema(request(**tools, tool_choice="required"))
    assert required is not None
    assert [call["properties"]["name"]["const"] for call in required["anyOf"]] == [
        "get_weather",
        "add",
    ]


@pytest.mark.requirement("tool-calls-forced")
@pytest.mark.parametrize(
    "values",
    [
        {"tool_choice": "required"},
        {"tool_choice": "subtract", "available_tools": [ADD]},
        {"tool_choice": "add"},
        {"tool_choice": "add", "available_tools": [ADD, ADD]},
        {"tool_choice": "add", "available_tools": [ADD], "assistant_prefix": "x"},
    ],
)
def test_what_cannot_be_forced_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        forced_call_schema(request(**values))


@pytest.mark.requirement("tool-calls-forced")
def test_shared_definitions_move_to_the_root() -> None:
    def tool(name: str, definition: Any) -> ToolDefinition:
        parameters = {
            "type": "object",
            "properties": {"x": {"$ref": "#/$defs/X"}},
            "$defs": definition,
        }
        return ToolDefinition(tool_name=name, parameters=parameters)

    text, number = {"X": {"type": "string"}}, {"X": {"type": "number"}}
    schema = forced_call_schema(
        request(available_tools=[tool("a", text), tool("b", text)], tool_choice="required")
    )
    assert schema is not None
    assert schema["$defs"] == text
    assert all("$defs" not in call["properties"]["arguments"] for call in schema["anyOf"])
    for other in (number, ["X"]):
        with pytest.raises(InvalidRequest):
            forced_call_schema(
                request(available_tools=[tool("a", text), tool("b", other)], tool_choice="required")
            )
