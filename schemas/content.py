"""Content, messages, tools and sampling: the types that every API shares."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta

from .wire import Reply, Wire


class Role(StrEnum):
    """Who speaks."""

    system = "system"
    user = "user"
    assistant = "assistant"
    tool = "tool"


URL = Annotated[
    str, Meta(pattern=r"^(https?://|file://|data:)", description="An http(s), file or data URL.")
]


class Attachment(Wire, frozen=True):
    """Content that is referred to by its address."""

    url: URL
    mime_type: str


Content = str | Attachment | list[str | Attachment]


class ToolCall(Wire, frozen=True):
    """A model's wish that a tool be run."""

    tool_name: str
    arguments: dict[str, Any]


class ToolResponse(Wire, frozen=True):
    """What a tool answered."""

    tool_name: str
    content: Content


class BuiltinTool(StrEnum):
    """The tools that a deployment brings along; their names are reserved."""

    web_search = "web_search"
    math = "math"
    image_gen = "image_gen"
    code_interpreter = "code_interpreter"


class ShieldType(StrEnum):
    """The kinds of shields."""

    llama_guard = "llama_guard"
    prompt_guard = "prompt_guard"
    code_guard = "code_guard"


ShieldName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=160,
        description="`llama_guard`, `prompt_guard`, `code_guard`, or the name of a shield that an own actor runs.",
    ),
]


class ShieldConfig(Wire, frozen=True):
    """A shield and its settings."""

    shield_type: ShieldName
    params: Annotated[
        dict[str, Any],
        Meta(
            description="The shield's own, and those of all shields: `observe` (false: what it finds is told, and nothing "
            "is held back for it), `timeout` (seconds; then it counts as a violation)."
        ),
    ] = {}


Shields = Annotated[list[ShieldConfig], Meta(max_length=16)]
"""The shields of one place."""


class ToolDefinition(Wire, frozen=True):
    """A tool that a model may call.

    ``parameters`` is either a JSON schema of the arguments object, or a map from each argument's name to its schema
    or to a plain description; in a map all arguments are required.
    """

    tool_name: Annotated[str, Meta(min_length=1)]
    parameters: dict[str, Any] | None = None
    description: Annotated[
        str | None, Meta(description="Extension: what the tool does, for the model.")
    ] = None
    input_shields: Shields = []
    output_shields: Shields = []


class StopReason(StrEnum):
    """Why a model stopped."""

    not_stopped = "not_stopped"
    finished_ok = "finished_ok"
    max_tokens = "max_tokens"


class Message(Wire, frozen=True):
    """One message of a dialog."""

    role: Role
    content: Content
    tool_calls: list[ToolCall] = []
    tool_responses: list[ToolResponse] = []


class Dialog(Wire, frozen=True):
    """A message and what was said before it."""

    message: Message
    message_history: list[Message] | None = None


class SamplingStrategy(StrEnum):
    """How the next token is chosen; ``greedy`` ignores the temperature."""

    greedy = "greedy"
    top_p = "top_p"
    top_k = "top_k"


class SamplingParams(Wire, frozen=True):
    """How a model chooses its tokens."""

    temperature: Annotated[float, Meta(ge=0)] = 0.0
    strategy: SamplingStrategy = SamplingStrategy.greedy
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.95
    top_k: Annotated[int, Meta(ge=0)] = 0
    seed: (
        Annotated[
            int, Meta(ge=0, lt=2**32 - 1, description="Extension: makes sampling repeatable.")
        ]
        | None
    ) = None
    stop: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=200)]],
        Meta(
            max_length=8,
            description="Extension: texts that end the answer where they come; they are no part of it.",
        ),
    ] = []


MaxTokens = Annotated[
    int,
    Meta(ge=0, description="The most tokens to generate; 0 means as many as the context holds."),
]


class PretrainedModel(StrEnum):
    """The base models that the draft names; on the wire a model is an open string."""

    llama3_8b = "llama3_8b"
    llama3_70b = "llama3_70b"


class InstructModel(StrEnum):
    """The chat models that the draft names; on the wire a model is an open string."""

    llama3_8b_chat = "llama3_8b_chat"
    llama3_70b_chat = "llama3_70b_chat"


class RewardModel(StrEnum):
    """The reward model that the draft names; on the wire a model is an open string."""

    llama3_405b_reward = "llama3_405b_reward"


ModelName = Annotated[
    str, Meta(min_length=1, description="The name or an alias of a served model; see GET /models.")
]


class TokenUsage(Reply, frozen=True):
    """Extension: what a call consumed, in tokens."""

    prompt_tokens: int
    completion_tokens: int
