"""What servers stream: chunks of answers, in the shapes that servers give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ....schemas import EngineError

UNLIKELY = -9999.0
"""OpenAI's log probability of what is very unlikely; some servers say null, since JSON has no infinity."""


class CallFunction(msgspec.Struct, gc=False):
    """A piece of a tool call: the name once, the arguments' JSON text bit by bit."""

    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class CallPiece(msgspec.Struct):
    """A piece of the tool call that stands at ``index``."""

    index: int | None = None
    id: str | None = None
    function: CallFunction | None = None


class ChatDelta(msgspec.Struct):
    """What is new in a chat. What a model thinks first comes apart from its answer, under one of two names."""

    content: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[CallPiece] | None = None


class TokenLogprob(msgspec.Struct):
    """A token and its alternatives."""

    token: str
    logprob: float | None = None
    bytes: list[int] | None = None
    top_logprobs: list[TokenLogprob] | None = None


class Logprobs(msgspec.Struct):
    """Log probabilities: ``content`` of chats (and of all that llama.cpp says), else the four lists of OpenAI's completions."""

    content: list[TokenLogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None


class Choice(msgspec.Struct):
    """A piece of an answer: ``delta`` in a chat, ``text`` otherwise."""

    delta: ChatDelta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class Usage(msgspec.Struct, gc=False):
    """Counts of tokens."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Chunk(msgspec.Struct):
    """One event of a stream."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(Chunk)


def read_chunk(data: bytes) -> Chunk:
    """Return the chunk that an event holds.

    Raises:
        EngineError: it holds none.
    """
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise EngineError("the server sends events that are no chunks of an answer") from error


def read_logprobs(found: Logprobs) -> Sequence[dict[str, Any]]:
    """Return one ``{"token", "logprob", "bytes", "top_logprobs"}`` a token, as all engines give them."""
    if found.content is not None:
        return [
            _known(token) | {"top_logprobs": [_known(other) for other in token.top_logprobs or ()]}
            for token in found.content
        ]
    tokens = found.tokens or []
    logprobs = found.token_logprobs or [None] * len(tokens)
    others = found.top_logprobs or [None] * len(tokens)
    return [
        _known(TokenLogprob(token, logprob))
        | {"top_logprobs": [_known(TokenLogprob(*other)) for other in _likeliest(alternatives)]}
        for token, logprob, alternatives in zip(tokens, logprobs, others, strict=False)
    ]


def _likeliest(alternatives: dict[str, float | None] | None) -> list[tuple[str, float | None]]:
    found = (alternatives or {}).items()
    return sorted(found, key=lambda one: UNLIKELY if one[1] is None else one[1], reverse=True)


def _known(token: TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": UNLIKELY if token.logprob is None else token.logprob,
        "bytes": list(token.token.encode()) if token.bytes is None else token.bytes,
    }
