"""What actors answer, told in OpenAI's terms; nothing here needs a server."""

from __future__ import annotations

import json
import struct
from base64 import b64decode
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.openai_gateway import chunks_of, said

from ayllu.runtime.answers import error_response
from ayllu.runtime.openai.chat import translate_chat
from ayllu.runtime.openai.completions import translate_completion
from ayllu.runtime.openai.embeddings import translate_embeddings
from ayllu.runtime.openai.errors import openai_error_body
from ayllu.runtime.openai.framing import Head
from ayllu.runtime.openai.models import translate_model, translate_models
from ayllu.schemas import (
    AylluError,
    BusError,
    ChatCompletionResponse,
    ChatCompletionResponseStreamChunk,
    CompletionResponse,
    CompletionResponseStreamChunk,
    EmbeddingsResponse,
    ErrorInfo,
    InvalidRequest,
    Model,
    ModelNotFound,
    Overloaded,
    StopReason,
    TokenUsage,
    ToolCall,
    Unauthenticated,
    assemble_chat,
    assemble_completion,
    error_from,
)
from ayllu.schemas.errors import error_codes

HEAD = Head("x", 7)
USAGE = TokenUsage(prompt_tokens=3, completion_tokens=2)
TOLD = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
OK = StopReason.finished_ok


def token(text: str, *others: str) -> dict[str, Any]:
    known = {"token": text, "logprob": -0.5, "bytes": list(text.encode())}
    alternatives = [{"token": other, "logprob": -1.0} for other in others]
    return {**known, "top_logprobs": [known, *alternatives]}


def chat(**fields: Any) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return translate_chat(json.dumps(body).encode(), HEAD).answer


def completion(prompt: Any = "x", **fields: Any) -> Any:
    body = {"model": "m", "prompt": prompt, **fields}
    return translate_completion(json.dumps(body).encode(), HEAD).answer


def streamed(stream: Any, *batches: list[Any]) -> list[dict[str, Any]]:
    text = stream.begin() + b"".join(stream.feed(events) for events in batches) + stream.end()
    return chunks_of(text)


@pytest.mark.requirement("openai-chat")
def test_a_whole_answer() -> None:
    reply = ChatCompletionResponse("Hello", stop_reason=OK, usage=USAGE)
    assert json.loads(chat()([reply])) == {
        "id": "chatcmpl-x",
        "object": "chat.completion",
        "created": 7,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": TOLD,
        "system_fingerprint": None,
    }


@pytest.mark.requirement("openai-tools")
def test_calls_in_a_whole_answer() -> None:
    calls = [ToolCall("weather", {"city": "Lima"}), ToolCall("time", {})]
    [choice] = json.loads(chat()([ChatCompletionResponse("", calls, OK)]))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    first, second = choice["message"]["tool_calls"]
    assert first["function"] == {"name": "weather", "arguments": '{"city":"Lima"}'}
    assert (first["type"], second["function"]["arguments"]) == ("function", "{}")
    assert first["id"] != second["id"]
    cut = ChatCompletionResponse("so", calls[:1], StopReason.max_tokens)
    [choice] = json.loads(chat()([cut]))["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", "so")


@pytest.mark.requirement("openai-logprobs")
def test_log_probabilities() -> None:
    logprobs = {"content": [token("He", "Ho", "Hu"), token("llo")]}
    reply = ChatCompletionResponse("Hello", stop_reason=OK, logprobs=logprobs)
    [choice] = json.loads(chat(logprobs=True, top_logprobs=2)([reply]))["choices"]
    first, second = choice["logprobs"]["content"]
    assert (first["token"], first["bytes"]) == ("He", [72, 101])
    assert [one["token"] for one in first["top_logprobs"]] == ["He", "Ho"]
    assert first["top_logprobs"][1]["bytes"] is None
    assert len(second["top_logprobs"]) == 1
    [choice] = json.loads(chat(logprobs=True)([reply]))["choices"]
    assert choice["logprobs"]["content"][0]["top_logprobs"] == []


@pytest.mark.requirement("openai-actors-not-trusted")
def test_answers_that_are_none() -> None:
    whole = chat()
    for replies in (
        [],
        [ChatCompletionResponse("a"), ChatCompletionResponse("b")],
        [ChatCompletionResponse(["a"])],
        [ChatCompletionResponse("a", logprobs={"content": [{"token": 1}]})],
        [ChatCompletionResponse("a", logprobs={})],
    ):
        with pytest.raises(BusError):
            whole(replies)


@pytest.mark.requirement("openai-chat")
def test_a_stream() -> None:
    events = [
        ChatCompletionResponseStreamChunk('He"'),
        ChatCompletionResponseStreamChunk("llo"),
        ChatCompletionResponseStreamChunk("", OK, usage=USAGE),
    ]
    first, *text, last = streamed(chat(stream=True), events[:1], events[1:])
    for chunk in (first, *text, last):
        assert (chunk["id"], chunk["object"]) == ("chatcmpl-x", "chat.completion.chunk")
        assert (chunk["created"], chunk["model"]) == (7, "m")
        assert "usage" not in chunk
        assert chunk["choices"][0]["index"] == 0
        assert chunk["choices"][0]["logprobs"] is None
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"]["content"] for chunk in text] == ['He"', "llo"]
    assert {chunk["choices"][0]["finish_reason"] for chunk in (first, *text)} == {None}
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")


@pytest.mark.requirement("openai-usage")
def test_the_usage_of_a_stream() -> None:
    events = [ChatCompletionResponseStreamChunk("a"), ChatCompletionResponseStreamChunk("", OK)]
    events[1] = ChatCompletionResponseStreamChunk("", OK, usage=USAGE)
    for stream, batch in (
        (chat(stream=True, stream_options={"include_usage": True}), events),
        (
            completion(stream=True, stream_options={"include_usage": True}),
            [CompletionResponseStreamChunk("a", OK, usage=USAGE)],
        ),
        (
            completion(["x", "y"], stream=True, stream_options={"include_usage": True}),
            [
                CompletionResponse("a", OK, usage=TokenUsage(prompt_tokens=1, completion_tokens=1)),
                CompletionResponse("b", OK, usage=TokenUsage(prompt_tokens=2, completion_tokens=1)),
            ],
        ),
    ):
        *others, last = streamed(stream, batch)
        assert {chunk["usage"] for chunk in others} == {None}
        assert (last["choices"], last["usage"]) == ([], TOLD)
    quiet = chat(stream=True, stream_options={"include_usage": False})
    assert "usage" not in streamed(quiet, events)[-1]


@pytest.mark.requirement("openai-tools")
def test_calls_in_a_stream_come_whole() -> None:
    events = [
        ChatCompletionResponseStreamChunk("so", tool_call=ToolCall("weather", {"city": "Lima"})),
        ChatCompletionResponseStreamChunk("", tool_call=ToolCall("time", {})),
        ChatCompletionResponseStreamChunk("", OK),
    ]
    _, text, *calls, last = streamed(chat(stream=True), events)
    assert text["choices"][0]["delta"] == {"content": "so"}
    told = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in calls]
    assert [(one["index"], one["function"]["name"]) for one in told] == [
        (0, "weather"),
        (1, "time"),
    ]
    assert told[0]["function"]["arguments"] == '{"city":"Lima"}'
    assert told[0]["id"] != told[1]["id"]
    assert last["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.requirement("openai-actors-not-trusted")
def test_a_stream_without_its_end_is_no_whole_answer() -> None:
    assert streamed(chat(stream=True), [])[-1]["choices"][0]["finish_reason"] == "length"


texts = st.text(st.characters(codec="utf-8"), max_size=6)
pieces = st.one_of(
    texts,
    st.builds(ToolCall, st.text(min_size=1, max_size=4), st.dictionaries(texts, texts, max_size=2)),
)


@pytest.mark.requirement("openai-stream-equals-whole")
@given(st.lists(pieces, max_size=8), st.booleans(), st.lists(st.integers(0, 9)), st.booleans())
def test_a_stream_of_a_chat_is_the_whole_answer(
    said_pieces: list[str | ToolCall], logprobs: bool, cuts: list[int], whole_end: bool
) -> None:
    events = [
        ChatCompletionResponseStreamChunk(
            text_delta=piece if isinstance(piece, str) else "",
            tool_call=piece if isinstance(piece, ToolCall) else None,
            logprobs={"content": [token(piece, "?")] if isinstance(piece, str) else []}
            if logprobs
            else None,
        )
        for piece in said_pieces
    ]
    reason = OK if whole_end else StopReason.max_tokens
    events.append(
        ChatCompletionResponseStreamChunk(
            "", reason, usage=USAGE, logprobs={"content": []} if logprobs else None
        )
    )
    fields = {"logprobs": True, "top_logprobs": 1} if logprobs else {}
    whole = json.loads(chat(**fields)([assemble_chat(events)]))
    [choice] = whole["choices"]
    places = sorted({cut for cut in cuts if cut < len(events)} | {0, len(events)})
    batches = [events[a:b] for a, b in pairwise(places)]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = streamed(chat(**fields, **options), *batches)
    assert said(chunks) == (choice["message"]["content"] or "")
    deltas = [chunk["choices"][0] for chunk in chunks[:-1]]
    calls = [one for delta in deltas for one in delta["delta"].get("tool_calls", [])]
    assert [one.pop("index") for one in calls] == list(range(len(calls)))
    assert calls == choice["message"].get("tool_calls", [])
    assert deltas[-1]["finish_reason"] == choice["finish_reason"]
    tokens = [one for delta in deltas if delta["logprobs"] for one in delta["logprobs"]["content"]]
    assert tokens == (choice["logprobs"]["content"] if logprobs else [])
    assert chunks[-1]["usage"] == whole["usage"]


@pytest.mark.requirement("openai-stream-equals-whole")
@given(st.lists(texts, max_size=8), st.booleans(), st.integers(0, 8))
def test_a_stream_of_a_completion_is_the_whole_answer(
    said_texts: list[str], logprobs: bool, cut: int
) -> None:
    events = [
        CompletionResponseStreamChunk(
            text, logprobs={"content": [token(text, "?")]} if logprobs else None
        )
        for text in said_texts
    ]
    events.append(CompletionResponseStreamChunk("", OK, {"content": []} if logprobs else None))
    fields = {"logprobs": 2} if logprobs else {}
    [choice] = json.loads(completion(**fields)([assemble_completion(events)]))["choices"]
    chunks = streamed(completion(**fields, stream=True), events[:cut], events[cut:])
    told = [chunk["choices"][0] for chunk in chunks]
    assert "".join(one["text"] for one in told) == choice["text"]
    assert told[-1]["finish_reason"] == choice["finish_reason"] == "stop"
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [value for one in told if one["logprobs"] for value in one["logprobs"][name]]
        assert joined == (choice["logprobs"][name] if logprobs else [])


@pytest.mark.requirement("openai-logprobs", "openai-completions")
def test_log_probabilities_of_a_completion() -> None:
    logprobs = {"content": [token("He", "Ho"), token("llo")]}
    reply = CompletionResponse("Hello", OK, logprobs, USAGE)
    whole = json.loads(completion(logprobs=1)([reply]))
    assert (whole["id"], whole["object"], whole["usage"]) == ("cmpl-x", "text_completion", TOLD)
    assert whole["choices"][0]["logprobs"] == {
        "tokens": ["He", "llo"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"He": -0.5}, {"llo": -0.5}],
        "text_offset": [0, 2],
    }
    [choice] = json.loads(completion(logprobs=0)([reply]))["choices"]
    assert choice["logprobs"]["top_logprobs"] is None


@pytest.mark.requirement("openai-completions")
def test_several_prompts() -> None:
    replies = [CompletionResponse("a", OK, usage=USAGE), CompletionResponse("b")]
    whole = json.loads(completion(["x", "y"])(replies))
    assert [(one["index"], one["text"]) for one in whole["choices"]] == [(0, "a"), (1, "b")]
    assert [one["finish_reason"] for one in whole["choices"]] == ["stop", "length"]
    assert whole["usage"] is None  # One of them did not tell.
    chunks = streamed(completion(["x", "y"], stream=True), replies[:1], replies[1:])
    assert [chunk["choices"] for chunk in chunks] == [[one] for one in whole["choices"]]


@pytest.mark.requirement("openai-actors-not-trusted")
def test_several_prompts_and_another_number_of_answers() -> None:
    with pytest.raises(BusError):
        completion(["x", "y"])([CompletionResponse("a")])
    stream = completion(["x", "y"], stream=True)
    stream.feed([CompletionResponse("a")])
    with pytest.raises(BusError):
        stream.end()


def vectors(*found: list[float], **fields: Any) -> Any:
    body = {"model": "alias", "input": ["x"] * 2, **fields}
    answer: Any = translate_embeddings(json.dumps(body).encode(), HEAD).answer
    return json.loads(answer([EmbeddingsResponse("m", list(found), 4)]))


@pytest.mark.requirement("openai-embeddings")
def test_vectors() -> None:
    whole = vectors([0.5, -1.0], [0.25, 0.1])
    assert whole == {
        "object": "list",
        "model": "alias",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]},
            {"object": "embedding", "index": 1, "embedding": [0.25, 0.1]},
        ],
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    packed = vectors([0.5, -1.0], [0.25, 0.1], encoding_format="base64", dimensions=2)
    assert b64decode(packed["data"][0]["embedding"]) == struct.pack("<2f", 0.5, -1.0)
    with pytest.raises(InvalidRequest) as caught:
        vectors([0.5, -1.0], [0.25, 0.1], dimensions=3)
    assert caught.value.details == {"param": "dimensions"}


@pytest.mark.requirement("openai-actors-not-trusted")
def test_vectors_that_are_none() -> None:
    with pytest.raises(BusError):
        vectors([0.5])
    with pytest.raises(BusError):
        vectors([1e300], [0.5], encoding_format="base64")


@pytest.mark.requirement("openai-models")
def test_models() -> None:
    found = [
        Model("a", "scripted", 128, aliases=["alias"]),
        Model("b", "onnx", 64, kind="embedding"),
        Model("c", "judge", 64, kind="reward"),
    ]
    every: Any = translate_models().answer
    listed = json.loads(every(found))
    assert (listed["object"], [one["id"] for one in listed["data"]]) == ("list", ["a", "b"])
    one: Any = translate_model("alias").answer
    assert json.loads(one(found)) == {
        "id": "a",
        "object": "model",
        "created": 0,
        "owned_by": "ayllu",
        "ayllu": {"name": "a", "engine": "scripted", "context": 128, "aliases": ["alias"]},
    }
    none: Any = translate_model("c").answer
    with pytest.raises(ModelNotFound):
        none(found)


@pytest.mark.requirement("openai-errors")
def test_every_error_has_openai_s_shape() -> None:
    for code in error_codes():
        error = error_from(ErrorInfo(code, "why", details={"param": 3}))
        told = json.loads(openai_error_body(error))["error"]
        assert told.keys() == {"message", "type", "param", "code"}
        assert (told["message"], told["param"]) == ("why", None)
    for error, type_, code in (
        (Unauthenticated("x"), "authentication_error", "invalid_api_key"),
        (Overloaded("x"), "rate_limit_error", "rate_limit_exceeded"),
        (ModelNotFound("x"), "invalid_request_error", "model_not_found"),
        (BusError("x"), "server_error", "bus_error"),
    ):
        told = json.loads(openai_error_body(error))["error"]
        assert (told["type"], told["code"]) == (type_, code)


@pytest.mark.requirement("openai-errors")
def test_what_clients_are_told_about_trying_again() -> None:
    def told(error: AylluError, path: str = "/v1/models") -> tuple[str | None, str | None]:
        headers = error_response(error, path).headers
        return headers.get("retry-after"), headers.get("x-should-retry")

    assert told(BusError("x")) == (None, "true")
    assert told(InvalidRequest("x")) == (None, "false")
    assert told(Overloaded("x"), "/models") == ("1", None)
    for hint, seconds in ((0.2, "1"), (7, "7"), (-3, "0"), (1e300, "3600"), ("soon", "1")):
        assert told(Overloaded("x", details={"retry_after": hint})) == (seconds, "true")
    assert told(BusError("x", details={"retry_after": True})) == (None, "true")
