"""``/v1/completions`` in terms of our `inference.completion`, or `batch_completion` for several prompts, and back."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from ...schemas import (
    BatchCompletionRequest,
    BusError,
    CompletionRequest,
    CompletionResponse,
    CompletionResponseStreamChunk,
    Logprobs,
    StopReason,
    TokenUsage,
    encode,
)
from .framing import Frames, Head, Translated, finish_reason, text_of, tokens_of, usage_of
from .parts import TextLogprobs, Usage
from .reading import read, sampling_of, texts_of, wants_usage
from .types import CompletionAsked

OPERATION = "completion"
BATCH_OPERATION = "batch_completion"
_REPLIES = msgspec.json.Decoder(list[CompletionResponse])
_CHUNKS = msgspec.json.Decoder(list[CompletionResponseStreamChunk])


class _Choice(msgspec.Struct, frozen=True):
    text: str
    index: int = 0
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None


class _Completion(msgspec.Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[_Choice]
    usage: Usage | None
    object: Literal["text_completion"] = "text_completion"
    system_fingerprint: None = None


def translate_completion(body: bytes, head: Head) -> Translated[Any]:
    """Return a request for the continuation of a text, or of several, in our own terms.

    Raises:
        InvalidRequest: it is wrong, or asks for what is not served; its details name the field.
    """
    asked = read(body, CompletionAsked)
    usage, most = wants_usage(asked), asked.logprobs or 0
    prompts = texts_of(asked.prompt, "prompt")
    common: dict[str, Any] = {
        "model": asked.model,
        "sampling_params": sampling_of(asked),
        "max_tokens": asked.max_tokens,
        "logprobs": asked.logprobs is not None,
    }
    if len(prompts) > 1:
        batch = BatchCompletionRequest(content_batch=list(prompts), **common)
        if asked.stream:
            replies = BatchStream(head, asked.model, len(prompts), usage=usage, alternatives=most)
            return Translated(BATCH_OPERATION, batch, _REPLIES, replies)
        request: msgspec.Struct = batch
    else:
        request = CompletionRequest(content=prompts[0], stream=asked.stream, **common)
        if asked.stream:
            stream = CompletionStream(head, asked.model, usage=usage, alternatives=most)
            return Translated(f"{OPERATION}.stream", request, _CHUNKS, stream)

    def whole(found: list[CompletionResponse]) -> bytes:
        _check_count(found, len(prompts))
        choices = [_choice(place, reply, most) for place, reply in enumerate(found)]
        usage = _summed([reply.usage for reply in found])
        return encode(_Completion(_id(head), head.created, asked.model, choices, usage_of(usage)))

    operation = OPERATION if len(prompts) == 1 else BATCH_OPERATION
    return Translated(operation, request, _REPLIES, whole)


def _id(head: Head) -> str:
    return f"cmpl-{head.id}"


def _check_count(replies: list[CompletionResponse], count: int) -> None:
    if len(replies) != count:
        raise BusError(f"{count} prompts were answered by {len(replies)} replies")


def _summed(usages: list[TokenUsage | None]) -> TokenUsage | None:
    """Return what several calls consumed together, if all of them tell it."""
    told = [usage for usage in usages if usage is not None]
    if len(told) < len(usages):
        return None
    return TokenUsage(
        prompt_tokens=sum(usage.prompt_tokens for usage in told),
        completion_tokens=sum(usage.completion_tokens for usage in told),
    )


def _choice(place: int, reply: CompletionResponse, most: int) -> _Choice:
    return _Choice(
        text_of(reply.content),
        index=place,
        logprobs=_logprobs(reply.logprobs, most, 0),
        finish_reason=finish_reason(reply.stop_reason),
    )


def _logprobs(logprobs: Logprobs | None, most: int, offset: int) -> TextLogprobs | None:
    """Return tokens in the older form.

    Args:
        logprobs: the tokens, if they were asked for.
        most: how many alternatives are wanted.
        offset: of the first token.
    """
    if logprobs is None:
        return None
    tokens = tokens_of(logprobs, most)
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return TextLogprobs(
        tokens=[token.token for token in tokens],
        token_logprobs=[token.logprob for token in tokens],
        top_logprobs=[{top.token: top.logprob for top in token.top_logprobs} for token in tokens]
        if most
        else None,
        text_offset=offsets,
    )


class CompletionStream:
    """Makes the chunks of one continued text.

    Args:
        head: what each of them repeats.
        model: what the client calls the model.
        usage: whether the last one tells the usage.
        alternatives: of how many likeliest tokens each place tells, where log probabilities come.
    """

    def __init__(self, head: Head, model: str, *, usage: bool, alternatives: int) -> None:
        self._frames = Frames("text_completion", _id(head), head.created, model, usage=usage)
        self._before_text = self._frames.before + b'{"index":0,"text":'
        self._after_text = b',"logprobs":null,"finish_reason":null}' + self._frames.after
        self._alternatives = alternatives
        self._offset = 0
        self._reason: StopReason | None = None
        self._usage: TokenUsage | None = None

    def begin(self) -> bytes:
        """Return nothing: the first token begins the stream."""
        return b""

    def feed(self, events: list[CompletionResponseStreamChunk]) -> bytes:
        """Return the chunks of some events.

        Raises:
            BusError: an event tells its log probabilities wrongly.
        """
        chunks: list[bytes] = []
        for event in events:
            told = _logprobs(event.logprobs, self._alternatives, self._offset)
            if told is not None and told.tokens:
                self._offset = told.text_offset[-1] + len(told.tokens[-1])
                chunks.append(self._chunk(_Choice(event.text_delta, logprobs=told)))
            elif event.text_delta:
                chunks += (self._before_text, encode(event.text_delta), self._after_text)
            if event.stop_reason is not None:
                self._reason, self._usage = event.stop_reason, event.usage
        return b"".join(chunks)

    def end(self) -> bytes:
        """Return the chunk that tells why the text ended, and all that follows."""
        last = self._chunk(_Choice("", finish_reason=finish_reason(self._reason)))
        return last + self._frames.end(self._usage)

    def _chunk(self, choice: _Choice) -> bytes:
        return b"%b%b%b" % (self._frames.before, encode(choice), self._frames.after)


class BatchStream:
    """Makes the chunks of several continued texts: each comes whole, when its turn comes.

    Args:
        head: what each of them repeats.
        model: what the client calls the model.
        count: how many texts there are.
        usage: whether the last chunk tells the usage of all of them.
        alternatives: see `CompletionStream`.
    """

    def __init__(
        self, head: Head, model: str, count: int, *, usage: bool, alternatives: int
    ) -> None:
        self._frames = Frames("text_completion", _id(head), head.created, model, usage=usage)
        self._count = count
        self._alternatives = alternatives
        self._replies: list[CompletionResponse] = []

    def begin(self) -> bytes:
        """Return nothing: the first text begins the stream."""
        return b""

    def feed(self, events: list[CompletionResponse]) -> bytes:
        """Return the chunks of some texts.

        Raises:
            BusError: what came is no text.
        """
        first = len(self._replies)
        self._replies += events
        return b"".join(
            self._frames.before
            + encode(_choice(place, reply, self._alternatives))
            + self._frames.after
            for place, reply in enumerate(events, first)
        )

    def end(self) -> bytes:
        """Return the end of the stream.

        Raises:
            BusError: there are fewer texts than prompts, or more.
        """
        _check_count(self._replies, self._count)
        return self._frames.end(_summed([reply.usage for reply in self._replies]))
