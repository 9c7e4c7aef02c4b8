"""Parts of what is answered in OpenAI's protocol."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class Usage(msgspec.Struct, frozen=True):
    """What a call consumed, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(msgspec.Struct, frozen=True):
    """A token that might have stood in a place."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token of an answer, as engines tell it and as OpenAI does."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopLogprob] = []


class ChatLogprobs(msgspec.Struct, frozen=True):
    """The tokens of a chat's answer."""

    content: list[TokenLogprob]
    refusal: None = None


class TextLogprobs(msgspec.Struct, frozen=True):
    """The tokens of a completion; offsets count its characters from 0."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class FunctionAnswered(msgspec.Struct, frozen=True):
    """A call of the model's, its arguments as JSON text."""

    name: str
    arguments: str


class CallAnswered(msgspec.Struct, frozen=True):
    """A call of the model's; in chunks it has its place too."""

    id: str
    function: FunctionAnswered
    type: Literal["function"] = "function"
    index: int | UnsetType = UNSET


class Delta(msgspec.Struct, frozen=True):
    """What a chunk of a chat adds."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[CallAnswered] | UnsetType = UNSET
