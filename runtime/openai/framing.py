"""What all answers in OpenAI's protocol have in common: their head, their usage, and the frames of a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from ...schemas import BusError, InvalidRequest, StopReason, TokenUsage, encode
from ...schemas.wire import convert
from .parts import TokenLogprob, Usage

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
"""Ends a stream that is whole; one that ends in an error does not have it."""


@dataclass(frozen=True, slots=True)
class Head:
    """What each chunk of an answer repeats.

    Attributes:
        id: the answer's own, without the kind before it.
        created: seconds since 1970.
    """

    id: str
    created: int


class Stream(Protocol[T]):
    """Makes server-sent events out of what an actor sends; holds the state of one stream."""

    def begin(self) -> bytes:
        """Return what stands before the first event."""
        ...

    def feed(self, events: list[T]) -> bytes:
        """Return what some events amount to."""
        ...

    def end(self) -> bytes:
        """Return what ends the stream."""
        ...


@dataclass(frozen=True, slots=True)
class Translated(Generic[T]):
    """A request in our own terms, and how its answer is told.

    Attributes:
        operation: the name of ours.
        request: what it is asked.
        decoder: reads the events, items or the reply that come, many at once.
        answer: makes the body of the answer out of all of them, or the stream.
    """

    operation: str
    request: msgspec.Struct
    decoder: msgspec.json.Decoder[list[T]]
    answer: Callable[[list[T]], bytes] | Stream[T]


class Frames:
    """The bytes around the choices of each chunk.

    Attributes:
        before: what begins a chunk, up to its choices.
        after: what ends it.
    """

    def __init__(self, kind: str, id_: str, created: int, model: str, *, usage: bool) -> None:
        self.before = (
            b'data: {"id":%b,"object":%b,"created":%d,"model":%b,"system_fingerprint":null,"choices":['
            % (encode(id_), encode(kind), created, encode(model))
        )
        self.after = b'],"usage":null}\n\n' if usage else b"]}\n\n"
        self._usage = usage

    def end(self, usage: TokenUsage | None) -> bytes:
        """Return the end of a stream, with its usage where that was asked for."""
        if not self._usage:
            return DONE
        return b'%b],"usage":%b}\n\n%b' % (self.before, encode(usage_of(usage)), DONE)


def usage_of(usage: TokenUsage | None) -> Usage | None:
    """Return the usage of a call, if its actor told it."""
    if usage is None:
        return None
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    return Usage(prompt, completion, prompt + completion)


def finish_reason(reason: StopReason | None) -> str:
    """Return why a text ended. What does not say that it is whole counts as cut off."""
    return "stop" if reason is StopReason.finished_ok else "length"


def tokens_of(logprobs: Mapping[str, Any], most: int) -> list[TokenLogprob]:
    """Return the tokens of an answer, each with its likeliest alternatives.

    Args:
        logprobs: as an actor tells them.
        most: how many alternatives are wanted.

    Raises:
        BusError: the actor tells them wrongly.
    """
    try:
        tokens = convert(logprobs.get("content"), list[TokenLogprob])
    except InvalidRequest as error:
        raise BusError("the actor sent wrong log probabilities", retryable=False) from error
    return [
        msgspec.structs.replace(token, top_logprobs=token.top_logprobs[:most]) for token in tokens
    ]


def single(replies: list[T]) -> T:
    """Return the one reply of a call.

    Raises:
        BusError: there is none, or more than one.
    """
    if len(replies) != 1:
        raise BusError(f"the call was answered by {len(replies)} replies, not one")
    return replies[0]


def text_of(content: object) -> str:
    """Return the text that a model wrote.

    Raises:
        BusError: it is not text.
    """
    if not isinstance(content, str):
        raise BusError("the actor answered what is not text", retryable=False)
    return content
