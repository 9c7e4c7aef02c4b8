"""What clients send in OpenAI's protocol (https://platform.openai.com/docs/api-reference).

A request has the fields that are honoured here, with their types. Of all other fields, those in `WITHOUT_EFFECT` are taken
and do nothing, those in `NEUTRAL` are taken with a value that asks for nothing, and any further one is refused by its name
(`reading.read`). Objects within a request are strict: they have no other fields than these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

from msgspec import Meta

from ...schemas import Wire

WITHOUT_EFFECT = frozenset(
    (
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "user",
    )
)
"""Fields that tell of the client, or are hints about speed or price: what the answer says does not depend on them."""

NEUTRAL: Mapping[str, Sequence[object]] = MappingProxyType(
    {
        "audio": (),
        "best_of": (1,),
        "echo": (False,),
        "frequency_penalty": (0,),
        "function_call": (),
        "functions": ([],),
        "logit_bias": ({},),
        "modalities": (["text"],),
        "moderation": (),
        "n": (1,),
        "presence_penalty": (0,),
        "reasoning_effort": ("none",),
        "store": (False,),
        "suffix": ("",),
        "verbosity": ("medium",),
        "web_search_options": (),
    }
)
"""Fields of OpenAI's that are not served, and the values with which they ask for nothing."""

HINTS: Mapping[str, str] = MappingProxyType(
    {
        "best_of": "send several requests",
        "function_call": "use `tool_choice`",
        "functions": "use `tools`",
        "n": "send several requests, each with a seed of its own",
    }
)
"""What to do instead."""

MAX_TOP_LOGPROBS = 5
"""How many alternatives of a token engines tell."""

Tokens = Annotated[int, Meta(ge=1)]
Stop = Annotated[str, Meta(min_length=1, max_length=200)]
TopLogprobs = Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)]


class TextPart(Wire, frozen=True, tag_field="type", tag="text"):
    """A part of a message."""

    text: str
    prompt_cache_breakpoint: Any = None


class ImageURL(Wire, frozen=True):
    """Where an image is."""

    url: Annotated[str, Meta(pattern=r"^(https?://|data:)")]
    detail: str | None = None


class ImagePart(Wire, frozen=True, tag_field="type", tag="image_url"):
    """An image in a message."""

    image_url: ImageURL
    prompt_cache_breakpoint: Any = None


class CalledFunction(Wire, frozen=True):
    """A call that a model made: the arguments are JSON text."""

    name: Annotated[str, Meta(min_length=1)]
    arguments: str


class CalledTool(Wire, frozen=True):
    """A call that a model made, under the id by which its answer names it."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


class SystemMessage(Wire, frozen=True, tag_field="role", tag="system"):
    """What the model shall be."""

    content: str | list[TextPart]
    name: str | None = None


class DeveloperMessage(Wire, frozen=True, tag_field="role", tag="developer"):
    """The newer name of a system message."""

    content: str | list[TextPart]
    name: str | None = None


class UserMessage(Wire, frozen=True, tag_field="role", tag="user"):
    """What a person says."""

    content: str | list[TextPart | ImagePart]
    name: str | None = None


class AssistantMessage(Wire, frozen=True, tag_field="role", tag="assistant"):
    """What a model said, or, at the end, the beginning of what it shall say."""

    content: str | list[TextPart] | None = None
    tool_calls: list[CalledTool] | None = None
    refusal: None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    name: str | None = None


class ToolMessage(Wire, frozen=True, tag_field="role", tag="tool"):
    """What a tool answered to one call."""

    content: str | list[TextPart]
    tool_call_id: str
    name: str | None = None


AnyMessage = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class Function(Wire, frozen=True):
    """A tool: its parameters are a JSON schema of an object."""

    name: Annotated[str, Meta(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Wire, frozen=True):
    """A tool that may be called."""

    type: Literal["function"]
    function: Function


class ChosenFunction(Wire, frozen=True):
    """A tool by its name."""

    name: str


class ChosenTool(Wire, frozen=True):
    """The tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction


class TextFormat(Wire, frozen=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(Wire, frozen=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class NamedSchema(Wire, frozen=True):
    """A JSON schema; its name and its description are for people."""

    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Wire, frozen=True, tag_field="type", tag="json_schema"):
    """What a JSON schema describes."""

    json_schema: NamedSchema


class StreamOptions(Wire, frozen=True):
    """How to stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class GenerationAsked(Wire, frozen=True, kw_only=True):
    """What both ways of generating text have in common; ``top_k`` is an extension."""

    model: Annotated[str, Meta(min_length=1)]
    temperature: Annotated[float, Meta(ge=0)] = 1.0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=1)] | None = None
    seed: Annotated[int, Meta(ge=0, lt=2**32 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Meta(max_length=8)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None


class ChatAsked(GenerationAsked, frozen=True, kw_only=True):
    """The body of ``POST /v1/chat/completions``."""

    messages: Annotated[list[AnyMessage], Meta(min_length=1)]
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    tools: list[Tool] = []
    tool_choice: Literal["auto", "none", "required"] | ChosenTool = "auto"
    parallel_tool_calls: bool = True
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat = TextFormat()
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None


class CompletionAsked(GenerationAsked, frozen=True, kw_only=True):
    """The body of ``POST /v1/completions``."""

    prompt: str | list[Any]
    max_tokens: Tokens = 16
    logprobs: TopLogprobs | None = None


class EmbeddingsAsked(Wire, frozen=True, kw_only=True):
    """The body of ``POST /v1/embeddings``."""

    model: Annotated[str, Meta(min_length=1)]
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None
