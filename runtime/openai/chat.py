"""``/v1/chat/completions`` in terms of our `inference.chat_completion`, and back."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from ...schemas import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionResponseStreamChunk,
    Logprobs,
    StopReason,
    TokenUsage,
    ToolCall,
    ToolDefinition,
    encode,
)
from .errors import refusal
from .framing import (
    Frames,
    Head,
    Translated,
    finish_reason,
    single,
    text_of,
    tokens_of,
    usage_of,
)
from .messages import talk_of
from .parts import CallAnswered, ChatLogprobs, Delta, FunctionAnswered, Usage
from .reading import read, sampling_of, wants_usage
from .types import (
    ChatAsked,
    ChosenTool,
    Function,
    JsonObjectFormat,
    JsonSchemaFormat,
    TextFormat,
    Tokens,
)

OPERATION = "chat_completion"
_CHOICES = ("auto", "none", "required")
_REPLY = msgspec.json.Decoder(list[ChatCompletionResponse])
_CHUNKS = msgspec.json.Decoder(list[ChatCompletionResponseStreamChunk])


class _Message(msgspec.Struct, frozen=True):
    content: str | None
    tool_calls: list[CallAnswered] | UnsetType
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class _Choice(msgspec.Struct, frozen=True):
    message: _Message
    logprobs: ChatLogprobs | None
    finish_reason: str
    index: int = 0


class _Completion(msgspec.Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[_Choice]
    usage: Usage | None
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: None = None


class _ChunkChoice(msgspec.Struct, frozen=True):
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    index: int = 0


def translate_chat(body: bytes, head: Head) -> Translated[Any]:
    """Return a request for a chat in our own terms.

    Raises:
        InvalidRequest: it is wrong, or asks for what is not served; its details name the field.
    """
    asked = read(body, ChatAsked)
    usage, most = wants_usage(asked), _alternatives(asked)
    request = _request(asked)
    if asked.stream:
        stream = ChatStream(head, asked.model, usage=usage, alternatives=most)
        return Translated(f"{OPERATION}.stream", request, _CHUNKS, stream)

    def whole(replies: list[ChatCompletionResponse]) -> bytes:
        return _whole(head, asked.model, single(replies), most)

    return Translated(OPERATION, request, _REPLY, whole)


def _request(asked: ChatAsked) -> ChatCompletionRequest:
    talk = talk_of(asked.messages)
    choice = _choice(asked)
    return ChatCompletionRequest(
        model=asked.model,
        dialog=talk.dialog,
        sampling_params=sampling_of(asked),
        available_tools=[_tool(tool.function) for tool in asked.tools],
        max_tokens=_max_tokens(asked),
        stream=asked.stream,
        logprobs=asked.logprobs,
        tool_choice=choice,
        assistant_prefix=talk.assistant_prefix,
        json_schema=_json_schema(asked, choice),
    )


def _max_tokens(asked: ChatAsked) -> Tokens:
    old, new = asked.max_tokens, asked.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise refusal("max_tokens", "it contradicts `max_completion_tokens`")
    return old or new or 0


def _alternatives(asked: ChatAsked) -> int:
    if asked.top_logprobs is not None and not asked.logprobs:
        raise refusal("top_logprobs", "it needs `logprobs`")
    return asked.top_logprobs or 0


def _tool(function: Function) -> ToolDefinition:
    parameters = function.parameters
    if parameters:
        if parameters.get("type", "object") != "object":
            raise refusal(
                "tools", f"the parameters of {function.name!r} are not the schema of an object"
            )
        # Ours may also be a map from names to schemas; `type` says that it is none.
        parameters = {**parameters, "type": "object"}
    return ToolDefinition(function.name, parameters, function.description)


def _choice(asked: ChatAsked) -> str | None:
    """Return the choice of a tool in our terms, in which it is one text."""
    choice, names = asked.tool_choice, [tool.function.name for tool in asked.tools]
    if len(set(names)) < len(names):
        raise refusal("tools", "two have the same name")
    if isinstance(choice, ChosenTool):
        name = choice.function.name
        if name not in names:
            raise refusal("tool_choice", f"the tool {name!r} is not among the `tools`")
        if name in _CHOICES:
            raise refusal("tool_choice", f"a tool that is called {name!r} cannot be forced")
        return name
    if choice == "required" and not names:
        raise refusal("tool_choice", "a call is required, but there are no `tools`")
    if choice == "auto" and names and not asked.parallel_tool_calls:
        raise refusal(
            "parallel_tool_calls",
            "how many tools a model calls can be limited only where `tool_choice` forces a call",
        )
    return choice if names else None


def _json_schema(asked: ChatAsked, choice: str | None) -> dict[str, Any] | None:
    wanted = asked.response_format
    if isinstance(wanted, TextFormat):
        return None
    if choice not in {None, "none"}:
        raise refusal(
            "response_format",
            "the answer cannot be a call too; leave out `tools`, or let `tool_choice` be none",
        )
    if isinstance(wanted, JsonSchemaFormat):
        return wanted.json_schema.schema
    assert isinstance(wanted, JsonObjectFormat)
    return {"type": "object"}


def _whole(head: Head, model: str, reply: ChatCompletionResponse, most: int) -> bytes:
    text, calls = text_of(reply.content), reply.tool_calls
    message = _Message(
        content=text if text or not calls else None,
        tool_calls=[_call(head, place, one) for place, one in enumerate(calls)] or UNSET,
    )
    choice = _Choice(
        message,
        logprobs=_logprobs(reply.logprobs, most),
        finish_reason=_finish_reason(reply.stop_reason, calls=bool(calls)),
    )
    return encode(
        _Completion(_id(head), head.created, model, [choice], usage=usage_of(reply.usage))
    )


def _id(head: Head) -> str:
    return f"chatcmpl-{head.id}"


def _call(head: Head, place: int, call: ToolCall) -> CallAnswered:
    arguments = encode(call.arguments).decode()
    return CallAnswered(f"call_{head.id}_{place}", FunctionAnswered(call.tool_name, arguments))


def _finish_reason(reason: StopReason | None, *, calls: bool) -> str:
    told = finish_reason(reason)
    return "tool_calls" if calls and told == "stop" else told


def _logprobs(logprobs: Logprobs | None, most: int) -> ChatLogprobs | None:
    return None if logprobs is None else ChatLogprobs(tokens_of(logprobs, most))


class ChatStream:
    """Makes the chunks of one chat.

    Args:
        head: what each of them repeats.
        model: what the client calls the model.
        usage: whether the last one tells the usage.
        alternatives: of how many likeliest tokens each place tells, where log probabilities come.
    """

    def __init__(self, head: Head, model: str, *, usage: bool, alternatives: int) -> None:
        self._frames = Frames("chat.completion.chunk", _id(head), head.created, model, usage=usage)
        # This is what the gateway does for each token, and all that it does: no object is made but its text.
        self._before_text = self._frames.before + b'{"index":0,"delta":{"content":'
        self._after_text = b'},"logprobs":null,"finish_reason":null}' + self._frames.after
        self._head = head
        self._alternatives = alternatives
        self._calls = 0
        self._reason: StopReason | None = None
        self._usage: TokenUsage | None = None

    def begin(self) -> bytes:
        """Return the chunk that tells the role."""
        return self._chunk(_ChunkChoice(Delta(role="assistant", content="")))

    def feed(self, events: list[ChatCompletionResponseStreamChunk]) -> bytes:
        """Return the chunks of some events.

        Raises:
            BusError: an event tells its log probabilities wrongly.
        """
        chunks: list[bytes] = []
        for event in events:
            if event.logprobs is not None:
                chunks += self._with_logprobs(event.text_delta, event.logprobs)
            elif event.text_delta:
                chunks += (self._before_text, encode(event.text_delta), self._after_text)
            if event.tool_call is not None:
                chunks.append(self._with_call(event.tool_call))
            if event.stop_reason is not None:
                self._reason, self._usage = event.stop_reason, event.usage
        return b"".join(chunks)

    def end(self) -> bytes:
        """Return the chunk that tells why the answer ended, and all that follows."""
        reason = _finish_reason(self._reason, calls=self._calls > 0)
        last = self._chunk(_ChunkChoice(Delta(), finish_reason=reason))
        return last + self._frames.end(self._usage)

    def _with_logprobs(self, text: str, logprobs: Logprobs) -> list[bytes]:
        told = _logprobs(logprobs, self._alternatives)
        if not text and not (told and told.content):
            return []
        return [self._chunk(_ChunkChoice(Delta(content=text), told))]

    def _with_call(self, call: ToolCall) -> bytes:
        told = msgspec.structs.replace(_call(self._head, self._calls, call), index=self._calls)
        self._calls += 1
        return self._chunk(_ChunkChoice(Delta(tool_calls=[told])))

    def _chunk(self, choice: _ChunkChoice) -> bytes:
        return b"%b%b%b" % (self._frames.before, encode(choice), self._frames.after)
