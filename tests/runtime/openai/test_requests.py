"""Requests in OpenAI's terms and what is made of them; nothing here needs a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ayllu.runtime.openai.chat import translate_chat
from ayllu.runtime.openai.completions import translate_completion
from ayllu.runtime.openai.embeddings import translate_embeddings
from ayllu.runtime.openai.errors import openai_error_body
from ayllu.runtime.openai.framing import Head
from ayllu.runtime.openai.types import HINTS, NEUTRAL, WITHOUT_EFFECT
from ayllu.schemas import (
    OPERATIONS,
    Attachment,
    BatchCompletionRequest,
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingsRequest,
    InvalidRequest,
    Message,
    Role,
    ToolCall,
    ToolResponse,
    encode,
)
from ayllu.schemas.content import SamplingStrategy

HEAD = Head("x", 1)
HELLO = {"role": "user", "content": "hello"}
IMAGE = "data:image/png;base64,AAAA"


def asked(messages: Any = None, **fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [HELLO] if messages is None else messages, **fields}
    translated = translate_chat(json.dumps(body).encode(), HEAD)
    assert isinstance(translated.request, ChatCompletionRequest)
    # What is made of a request is always a request of ours.
    OPERATIONS[translated.operation].read(encode(translated.request))
    return translated.request


def completion(**fields: Any) -> Any:
    body = json.dumps({"model": "m", **fields}).encode()
    translated = translate_completion(body, HEAD)
    OPERATIONS[translated.operation].read(encode(translated.request))
    return translated.request


def embeddings(**fields: Any) -> Any:
    return translate_embeddings(json.dumps({"model": "m", **fields}).encode(), HEAD).request


def param_of(call: Any, *args: Any, **fields: Any) -> str | None:
    """Return which field a request is refused for; the message names it too."""
    with pytest.raises(InvalidRequest) as caught:
        call(*args, **fields)
    told = json.loads(openai_error_body(caught.value))["error"]
    assert told["type"] == "invalid_request_error"
    param: str | None = told["param"]
    assert param is None or param in told["message"]
    return param


def tool(name: str = "weather", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def called(id_: str = "c1", name: str = "weather", arguments: str = "{}") -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.requirement("openai-messages")
def test_roles_and_parts() -> None:
    request = asked(
        [
            {"role": "system", "content": "Be kind.", "name": "s"},
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": "yes", "refusal": None, "annotations": []},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "see"},
                    {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}},
                ],
            },
        ]
    )
    assert request.dialog.message_history == [
        Message(Role.system, "Be kind."),
        Message(Role.system, "Be brief."),
        Message(Role.user, "a\nb"),
        Message(Role.assistant, "yes"),
    ]
    pictures = [Attachment(IMAGE, "image/png"), Attachment("https://x.example/a.png", "image/*")]
    assert request.dialog.message == Message(Role.user, ["see", *pictures])
    assert request.assistant_prefix is None


@pytest.mark.requirement("openai-messages")
def test_calls_and_their_answers() -> None:
    request = asked(
        [
            HELLO,
            {
                "role": "assistant",
                "tool_calls": [called("a"), called("b", "time", '{"in": "Lima"}')],
            },
            {"role": "tool", "tool_call_id": "b", "content": "noon"},
            {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "sun"}]},
            {"role": "assistant", "content": "", "tool_calls": [called("a", "time")]},
            {"role": "tool", "tool_call_id": "a", "content": "one"},
        ],
        tools=[tool(), tool("time")],
    )
    assert request.dialog.message_history == [
        Message(Role.user, "hello"),
        Message(Role.assistant, "", [ToolCall("weather", {}), ToolCall("time", {"in": "Lima"})]),
        Message(
            Role.tool,
            "",
            tool_responses=[ToolResponse("time", "noon"), ToolResponse("weather", "sun")],
        ),
        Message(Role.assistant, "", [ToolCall("time", {})]),
    ]
    assert request.dialog.message.tool_responses == [ToolResponse("time", "one")]


@pytest.mark.requirement("openai-messages")
def test_the_beginning_of_an_answer() -> None:
    request = asked([HELLO, {"role": "assistant", "content": "Well, "}])
    assert (request.assistant_prefix, request.dialog.message.content) == ("Well, ", "hello")
    assert request.dialog.message_history is None


@pytest.mark.requirement("openai-messages", "openai-nothing-ignored")
@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "Well, "}],
        [HELLO, {"role": "assistant", "tool_calls": [called()]}],
        [HELLO, {"role": "tool", "tool_call_id": "nobody's", "content": "x"}],
        [HELLO, {"role": "assistant", "tool_calls": [called(arguments="[1]")]}, HELLO],
        [HELLO, {"role": "assistant", "tool_calls": [called(arguments="{")]}, HELLO],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///x"}}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}],
        [{"role": "function", "name": "f", "content": "x"}],
        [{"role": "assistant", "content": None, "audio": {"id": "x"}}, HELLO],
        [{"role": "user", "content": "x", "mood": "good"}],
        [{"role": "user"}],
    ],
)
def test_messages_that_cannot_be_meant(messages: list[Any]) -> None:
    assert param_of(asked, messages) == "messages"


@pytest.mark.requirement("openai-sampling")
@pytest.mark.parametrize(
    ("fields", "strategy", "values"),
    [
        ({}, "top_p", (1.0, 1.0, 0)),
        ({"temperature": 0, "top_p": 0.5, "top_k": 3}, "greedy", (0.0, 0.5, 3)),
        ({"temperature": 0.5, "top_p": 0.9}, "top_p", (0.5, 0.9, 0)),
        ({"top_k": 40}, "top_k", (1.0, 1.0, 40)),
    ],
)
def test_sampling(fields: Any, strategy: str, values: tuple[float, float, int]) -> None:
    for request in (asked(**fields), completion(prompt="x", **fields)):
        sampling = request.sampling_params
        assert sampling.strategy is SamplingStrategy(strategy)
        assert (sampling.temperature, sampling.top_p, sampling.top_k) == values


@pytest.mark.requirement("openai-sampling")
def test_limits_seeds_and_stops() -> None:
    request = asked(seed=7, stop=["a", "b"], max_completion_tokens=9)
    assert (request.sampling_params.seed, request.sampling_params.stop) == (7, ["a", "b"])
    assert request.max_tokens == 9
    request = asked(stop="a", max_tokens=3)
    assert (request.sampling_params.stop, request.max_tokens) == (["a"], 3)
    assert asked(max_tokens=3, max_completion_tokens=3).max_tokens == 3
    assert asked().max_tokens == 0
    assert completion(prompt="x").max_tokens == 16
    assert completion(prompt="x", max_tokens=None).max_tokens == 16


@pytest.mark.requirement("openai-nothing-ignored")
@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("temperature", {"temperature": -1}),
        ("temperature", {"temperature": "1"}),
        ("top_p", {"top_p": 0}),
        ("top_k", {"top_k": 5, "top_p": 0.5}),
        ("top_k", {"top_k": 0}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**32 - 1}),
        ("stop", {"stop": ["x"] * 9}),
        ("stop", {"stop": ""}),
        ("model", {"model": ""}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("stream_options", {"stream": True, "stream_options": {"include_obfuscation": True}}),
        ("n", {"n": 2}),
        ("n", {"n": True}),
        ("logit_bias", {"logit_bias": {"50256": -100}}),
        ("presence_penalty", {"presence_penalty": 0.5}),
        ("frequency_penalty", {"frequency_penalty": -1}),
        ("min_p", {"min_p": 0.1}),
    ],
)
def test_what_neither_chats_nor_completions_take(param: str, fields: Any) -> None:
    assert param_of(asked, **fields) == param
    assert param_of(completion, **{"prompt": "x", **fields}) == param


@pytest.mark.requirement("openai-nothing-ignored")
@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": 3, "max_completion_tokens": 4}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("top_logprobs", {"logprobs": True, "top_logprobs": 6}),
        ("logprobs", {"logprobs": 3}),
        ("audio", {"audio": {"voice": "x"}}),
        ("modalities", {"modalities": ["text", "audio"]}),
        ("store", {"store": True}),
        ("functions", {"functions": [{"name": "f"}]}),
        ("reasoning_effort", {"reasoning_effort": "high"}),
        ("prompt", {"prompt": "x"}),
        ("tools", {"tools": [{"type": "custom", "custom": {"name": "x"}}]}),
        ("tools", {"tools": [tool(parameters={"type": "string"})]}),
        ("tools", {"tools": [tool(), tool()]}),
        ("tool_choice", {"tool_choice": "required"}),
        ("tool_choice", {"tool_choice": "weather", "tools": [tool()]}),
        ("tool_choice", {"tool_choice": tool("other"), "tools": [tool()]}),
        ("tool_choice", {"tool_choice": tool("auto"), "tools": [tool("auto")]}),
        ("parallel_tool_calls", {"parallel_tool_calls": False, "tools": [tool()]}),
        ("response_format", {"response_format": {"type": "grammar"}}),
        ("response_format", {"response_format": {"type": "json_schema"}}),
        ("response_format", {"response_format": {"type": "json_object"}, "tools": [tool()]}),
    ],
)
def test_what_chats_do_not_take(param: str, fields: Any) -> None:
    assert param_of(asked, **fields) == param


@pytest.mark.requirement("openai-nothing-ignored")
@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("prompt", {}),
        ("prompt", {"prompt": []}),
        ("prompt", {"prompt": [1, 2]}),
        ("prompt", {"prompt": [[1, 2]]}),
        ("prompt", {"prompt": ["x", 1]}),
        ("prompt", {"prompt": 3}),
        ("logprobs", {"prompt": "x", "logprobs": 6}),
        ("logprobs", {"prompt": "x", "logprobs": True}),
        ("echo", {"prompt": "x", "echo": True}),
        ("suffix", {"prompt": "x", "suffix": "."}),
        ("best_of", {"prompt": "x", "best_of": 3}),
        ("messages", {"prompt": "x", "messages": [HELLO]}),
    ],
)
def test_what_completions_do_not_take(param: str, fields: Any) -> None:
    assert param_of(completion, **fields) == param


@pytest.mark.requirement("openai-nothing-ignored")
def test_neutral_values_and_fields_without_effect() -> None:
    plain = asked()
    for name, values in NEUTRAL.items():
        for value in (None, *values):
            assert asked(**{name: value}) == plain
    for name in WITHOUT_EFFECT:
        assert asked(**{name: {"any": "thing"}}) == plain
    assert asked(tools=[], tool_choice="auto", parallel_tool_calls=False) == plain
    assert asked(response_format={"type": "text"}, unheard_of=None) == plain
    assert HINTS.keys() <= NEUTRAL.keys()
    assert not NEUTRAL.keys() & WITHOUT_EFFECT


@pytest.mark.requirement("openai-tools")
def test_tools() -> None:
    schema = {"properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [tool(description="The weather.", parameters=schema, strict=True), tool("time")]
    request = asked(tools=tools)
    weather, clock = request.available_tools
    assert (weather.tool_name, weather.description) == ("weather", "The weather.")
    assert weather.parameters == {**schema, "type": "object"}
    assert (clock.tool_name, clock.parameters) == ("time", None)
    assert request.tool_choice == "auto"
    assert asked(tools=tools, tool_choice="none").tool_choice == "none"
    assert asked(tools=tools, tool_choice="required").tool_choice == "required"
    forced = asked(tools=tools, tool_choice=tool("time"), parallel_tool_calls=False)
    assert forced.tool_choice == "time"


@pytest.mark.requirement("openai-structured-output")
def test_response_formats() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    named = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    assert asked(response_format=named).json_schema == schema
    assert asked(response_format={"type": "json_object"}).json_schema == {"type": "object"}
    tools = {"tools": [tool()], "tool_choice": "none"}
    assert asked(response_format=named, **tools).json_schema == schema


@pytest.mark.requirement("openai-completions")
def test_prompts() -> None:
    request = completion(prompt="x", logprobs=0, max_tokens=3)
    assert isinstance(request, CompletionRequest)
    assert (request.content, request.logprobs, request.max_tokens) == ("x", True, 3)
    assert not completion(prompt=["x"]).logprobs
    request = completion(prompt=["x", "y"], temperature=0)
    assert isinstance(request, BatchCompletionRequest)
    assert request.content_batch == ["x", "y"]


@pytest.mark.requirement("openai-embeddings")
def test_inputs() -> None:
    assert embeddings(input="x", user="me") == EmbeddingsRequest("m", ["x"])
    assert embeddings(input=["x", "y"]).input == ["x", "y"]
    refused: list[tuple[str, dict[str, Any]]] = [
        ("input", {"input": [1, 2]}),
        ("input", {"input": []}),
        ("input", {"input": ["x"] * 513}),
        ("input", {}),
        ("encoding_format", {"input": "x", "encoding_format": "int8"}),
        ("dimensions", {"input": "x", "dimensions": 0}),
        ("temperature", {"input": "x", "temperature": 1}),
    ]
    for param, fields in refused:
        assert param_of(embeddings, **fields) == param


@pytest.mark.requirement("openai-nothing-ignored")
@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": "\xff"}', b"[" * 5000, b'{"n": 2'])
def test_bodies_that_are_no_request(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        translate_chat(body, HEAD)
