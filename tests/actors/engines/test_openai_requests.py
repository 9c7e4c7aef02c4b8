"""Prompts as requests, and what is refused before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest
from support.engines import CITY, GREEDY, sampled, user

from ayllu.actors.engines.engine import ChatMessage, Generation, Image, Prompt, ToolAnswer
from ayllu.actors.engines.openai.requests import capabilities_of, request_of
from ayllu.actors.engines.settings import OpenAISettings
from ayllu.schemas import InvalidRequest, SamplingParams, ToolCall, ToolDefinition, Unsupported

HI = user("Hi")
ALWAYS = {
    "model": "m",
    "stream": True,
    "stream_options": {"include_usage": True},
}
TOOL = ToolDefinition("weather", {"city": {"type": "string"}}, "Tells it.")
SHOWN = Prompt(messages=[ChatMessage("user", "ab", images=[Image("data:,x", 1)])])
DEFAULT = OpenAISettings()
VLLM = OpenAISettings(continuation="vllm")


def request(
    prompt: Prompt, settings: OpenAISettings = DEFAULT, **values: Any
) -> tuple[str, dict[str, Any]]:
    generation = Generation(**{"sampling": GREEDY, **values})
    return request_of(prompt, generation, settings, "m", 512)


@pytest.mark.requirement("upstream-requests")
def test_a_dialog() -> None:
    path, body = request(HI, max_tokens=5)
    assert path == "/chat/completions"
    assert body == {
        **ALWAYS,
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": 5,
    }
    assert "max_tokens" not in request(HI)[1]


@pytest.mark.requirement("upstream-requests")
def test_a_raw_prompt() -> None:
    path, body = request(Prompt(text="1, 2,"), max_tokens=5, logprobs=True)
    assert path == "/completions"
    greedy = {"temperature": 0.0, "top_p": 1.0}
    assert body == {**ALWAYS, **greedy, "prompt": "1, 2,", "max_tokens": 5, "logprobs": 5}
    # Left out, it would be 16.
    assert request(Prompt(text="1, 2,"))[1]["max_tokens"] == 512


@pytest.mark.requirement("upstream-requests")
@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (sampled("greedy", temperature=5.0), {"temperature": 0.0, "top_p": 1.0}),
        (sampled("top_p", temperature=0.7, top_p=0.9), {"temperature": 0.7, "top_p": 0.9}),
        (
            sampled("top_k", temperature=0.7, top_k=9, seed=3, stop=["a", "b"]),
            {"temperature": 0.7, "top_p": 1.0, "top_k": 9, "seed": 3, "stop": ["a", "b"]},
        ),
    ],
)
def test_sampling(sampling: SamplingParams, expected: dict[str, Any]) -> None:
    _, body = request(HI, sampling=sampling)
    assert body == {**ALWAYS, "messages": body["messages"], **expected}


@pytest.mark.requirement("upstream-requests")
def test_logprobs_and_a_schema_of_a_dialog() -> None:
    _, body = request(HI, logprobs=True, json_schema=CITY)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 5)
    form = body["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"] == {"name": "answer", "schema": CITY, "strict": True}


@pytest.mark.requirement("upstream-requests")
def test_fields_of_the_configuration_come_after_ours() -> None:
    settings = OpenAISettings(extra={"min_p": 0, "temperature": 1, "stream": False})
    _, body = request(HI, settings)
    assert (body["min_p"], body["temperature"], body["stream"]) == (0, 0.0, True)


@pytest.mark.requirement("upstream-requests")
@pytest.mark.parametrize("tools", [True, False])
@pytest.mark.parametrize(
    ("text", "places", "expected"),
    [
        ("", [0], ["#"]),
        ("", [0, 0], ["#", "#"]),
        ("a", [0], ["#", "a"]),
        ("a", [1], ["a", "#"]),
        ("a\nb\n\nc", [1, 1, 3], ["a", "#", "#", "b", "#", "\nc"]),
    ],
)
def test_images_stand_in_their_places(
    tools: bool, text: str, places: list[int], expected: list[str]
) -> None:
    shown = ChatMessage("user", text, images=[Image("data:,x", place) for place in places])
    _, body = request(Prompt(messages=[shown]), OpenAISettings(images=True, tools=tools))
    image = {"type": "image_url", "image_url": {"url": "data:,x"}}
    parts = [image if one == "#" else {"type": "text", "text": one} for one in expected]
    assert body["messages"] == [{"role": "user", "content": parts}]


@pytest.mark.requirement("upstream-requests")
def test_continuations() -> None:
    prompt = user("Hi", "Hel")
    said = {"role": "assistant", "content": "Hel"}
    _, body = request(prompt, OpenAISettings(continuation="trailing"))
    assert body["messages"][-1] == said
    assert "add_generation_prompt" not in body
    _, body = request(prompt, VLLM)
    assert body["messages"][-1] == said
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    # Nothing was written yet.
    assert request(user("Hi", ""), VLLM) == request(HI, VLLM)


@pytest.mark.requirement("upstream-capabilities")
@pytest.mark.parametrize(
    ("lacks", "prompt", "values"),
    [
        ({"logprobs": False}, HI, {"logprobs": True}),
        ({"json_schema": False}, HI, {"json_schema": CITY}),
        ({"tools": False}, Prompt(messages=HI.messages, tools=[TOOL]), {}),
        ({"continuation": "none"}, user("Hi", "Hel"), {}),
        ({"images": False}, SHOWN, {}),
    ],
)
def test_what_the_server_lacks_is_unsupported(
    lacks: dict[str, Any], prompt: Prompt, values: dict[str, Any]
) -> None:
    (capability,) = lacks
    everything = OpenAISettings(continuation="trailing", images=True)
    assert capability in capabilities_of(everything)
    request(prompt, everything, **values)
    settings = OpenAISettings(**{"continuation": "trailing", **lacks})
    assert capability not in capabilities_of(settings)
    with pytest.raises(Unsupported, match=capability):
        request(prompt, settings, **values)


@pytest.mark.requirement("upstream-capabilities")
@pytest.mark.parametrize("prompt", [user("Hi", "Hel"), Prompt(text="Hi")])
def test_a_schema_is_for_a_whole_answer_of_a_dialog(prompt: Prompt) -> None:
    with pytest.raises(Unsupported):
        request(prompt, VLLM, json_schema=CITY)


@pytest.mark.requirement("upstream-requests")
@pytest.mark.parametrize(
    "prompt",
    [Prompt(), Prompt(text=""), Prompt(messages=[*HI.messages, ChatMessage("assistant", "b")])],
)
def test_what_asks_nothing_is_refused(prompt: Prompt) -> None:
    with pytest.raises(InvalidRequest):
        request(prompt)


@pytest.mark.requirement("upstream-tools")
@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, "auto"),
        ("auto", "auto"),
        ("required", "required"),
        ("weather", {"type": "function", "function": {"name": "weather"}}),
    ],
)
def test_tools(choice: str | None, expected: object) -> None:
    prompt = Prompt(messages=HI.messages, tools=[TOOL], tool_choice=choice)
    forced = choice not in (None, "auto")
    # A server that takes tools needs no schemas besides to be forced to a call.
    settings = OpenAISettings(json_schema=not forced)
    _, body = request(prompt, settings, json_schema=CITY if forced else None)
    assert "response_format" not in body
    assert body["tool_choice"] == expected
    (tool,) = body["tools"]
    assert tool["type"] == "function"
    function = tool["function"]
    assert (function["name"], function["description"]) == ("weather", "Tells it.")
    assert function["parameters"]["required"] == ["city"]
    assert function.get("strict", False) is forced
    bare = Prompt(messages=HI.messages, tools=[ToolDefinition("f")])
    assert "description" not in request(bare)[1]["tools"][0]["function"]


@pytest.mark.requirement("upstream-tools")
def test_calls_and_their_answers_are_tied_by_ids_made_of_places() -> None:
    dialog = [
        ChatMessage("user", "Hi"),
        ChatMessage(
            "assistant", "", [ToolCall("f", {"a": 1}), ToolCall("g", {}), ToolCall("f", {})]
        ),
        ChatMessage(
            "tool", "", (), [ToolAnswer("g", "G"), ToolAnswer("f", "F1"), ToolAnswer("f", "F2")]
        ),
        ChatMessage("assistant", "Again.", [ToolCall("f", {})]),
        ChatMessage("tool", "just text"),
        ChatMessage("user", "and", (), [ToolAnswer("nobody asked", "N")]),
    ]
    _, body = request(Prompt(messages=dialog))
    assert body == request(Prompt(messages=dialog))[1]
    asked, called, *answers = body["messages"]
    assert asked == {"role": "user", "content": "Hi"}
    assert called["content"] is None
    functions = [call["function"] for call in called["tool_calls"]]
    assert functions[0] == {"name": "f", "arguments": '{"a":1}'}
    first, second, third = (call["id"] for call in called["tool_calls"])
    assert all(len(id_) == 9 and id_.isalnum() for id_ in (first, second, third))
    assert answers[:3] == [
        {"role": "tool", "tool_call_id": second, "content": "G"},
        {"role": "tool", "tool_call_id": first, "content": "F1"},
        {"role": "tool", "tool_call_id": third, "content": "F2"},
    ]
    assert answers[3]["content"] == "Again."
    assert answers[4] == {
        "role": "tool",
        "tool_call_id": answers[3]["tool_calls"][0]["id"],
        "content": "just text",
    }
    assert [(one["role"], one["content"]) for one in answers[5:]] == [
        ("tool", "N"),
        ("user", "and"),
    ]


@pytest.mark.requirement("upstream-tools")
def test_without_native_tools_their_answers_are_what_a_user_says() -> None:
    dialog = [*HI.messages, ChatMessage("assistant", "calls"), ChatMessage("tool", "answer")]
    _, body = request(Prompt(messages=dialog), OpenAISettings(tools=False))
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
