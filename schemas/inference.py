"""The Inference API: completions and chats, streamed, whole and in batches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Protocol

from msgspec import Meta

from .content import (
    Content,
    Dialog,
    MaxTokens,
    ModelName,
    SamplingParams,
    StopReason,
    TokenUsage,
    ToolCall,
    ToolDefinition,
)
from .webmethod import webmethod
from .wire import Reply, Wire

AnswerText = Annotated[str, Meta(min_length=1, max_length=1000)]
Logprobs = Annotated[
    dict[str, Any],
    Meta(
        description='{"content": [{"token": str, "logprob": float, "bytes": [int], '
        '"top_logprobs": [...]}]}, one entry a token.'
    ),
]
ToolChoice = Annotated[
    str | None,
    Meta(
        description="Extension: `auto` (the default) lets the model decide, `none` forbids calls, `required` forces a "
        "call of some tool, the name of a tool forces a call of it; a forced call is constrained by its JSON schema."
    ),
]
JsonSchema = Annotated[
    dict[str, Any] | None,
    Meta(
        description="Extension: the answer is one JSON value that this JSON schema describes, and no call of a tool."
    ),
]


class AnswerChoice(Wire, frozen=True):
    """Extension: an answer that a model may give: a text, and perhaps a list behind it.

    A list is one or more of its items, with commas between them; an item holds no comma. No text has control characters other
    than line ends and tabs.
    """

    text: AnswerText
    list_of: Annotated[list[AnswerText], Meta(max_length=64)] = []


AnswerChoices = Annotated[
    Annotated[list[AnswerChoice], Meta(min_length=1, max_length=32)] | None,
    Meta(
        description="Extension: the answer is one of these, to the letter, and no call of a tool. Log probabilities are those "
        "before the constraint (llama_cpp) or after it (vllm)."
    ),
]
AssistantPrefix = Annotated[
    str | None,
    Meta(
        description="Extension: the beginning of the answer, already written. The model continues it; the response "
        "holds only what is new."
    ),
]


class CompletionRequest(Wire, frozen=True):
    """Continue a text."""

    content: Content
    model: ModelName
    sampling_params: SamplingParams = SamplingParams()
    max_tokens: MaxTokens = 0
    stream: bool = False
    logprobs: bool = False


class CompletionResponse(Reply, frozen=True):
    """Normal completion response."""

    content: Content
    stop_reason: StopReason | None = None
    logprobs: Logprobs | None = None
    usage: TokenUsage | None = None


class CompletionResponseStreamChunk(Reply, frozen=True):
    """Streamed completion response; the last chunk has the stop reason and the usage."""

    text_delta: str
    stop_reason: StopReason | None = None
    logprobs: Logprobs | None = None
    usage: TokenUsage | None = None


class ChatCompletionRequest(Wire, frozen=True):
    """Answer a dialog."""

    model: ModelName
    dialog: Dialog
    sampling_params: SamplingParams = SamplingParams()
    available_tools: list[ToolDefinition] = []
    max_tokens: MaxTokens = 0
    stream: bool = False
    logprobs: bool = False
    tool_choice: ToolChoice = None
    assistant_prefix: AssistantPrefix = None
    json_schema: JsonSchema = None
    answer_choices: AnswerChoices = None


class ChatCompletionResponse(Reply, frozen=True):
    """Normal chat completion response; several tool calls can be made in one."""

    content: Content
    tool_calls: list[ToolCall] = []
    stop_reason: StopReason | None = None
    logprobs: Logprobs | None = None
    usage: TokenUsage | None = None


class ChatCompletionResponseStreamChunk(Reply, frozen=True):
    """Streamed chat completion response, a series of such objects; each tool call comes whole in one."""

    text_delta: str
    stop_reason: StopReason | None = None
    tool_call: ToolCall | None = None
    logprobs: Logprobs | None = None
    usage: TokenUsage | None = None


class BatchCompletionRequest(Wire, frozen=True):
    """Continue many texts with the same settings."""

    model: ModelName
    content_batch: list[Content]
    sampling_params: SamplingParams = SamplingParams()
    max_tokens: MaxTokens = 0
    logprobs: bool = False


class BatchChatCompletionRequest(Wire, frozen=True):
    """Answer many dialogs with the same settings."""

    model: ModelName
    batch_dialogs: list[Dialog]
    sampling_params: SamplingParams = SamplingParams()
    available_tools: list[ToolDefinition] = []
    max_tokens: MaxTokens = 0
    logprobs: bool = False
    tool_choice: ToolChoice = None
    json_schema: JsonSchema = None


_Chunk = CompletionResponseStreamChunk | ChatCompletionResponseStreamChunk


def _joined_logprobs(chunks: Sequence[_Chunk]) -> Logprobs | None:
    tokens = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs["content"]]
    return {"content": tokens} if any(chunk.logprobs is not None for chunk in chunks) else None


def assemble_completion(chunks: Sequence[CompletionResponseStreamChunk]) -> CompletionResponse:
    """Return the whole response that a stream of chunks amounts to."""
    last = chunks[-1] if chunks else None
    return CompletionResponse(
        content="".join(chunk.text_delta for chunk in chunks),
        stop_reason=last.stop_reason if last else None,
        logprobs=_joined_logprobs(chunks),
        usage=last.usage if last else None,
    )


def assemble_chat(chunks: Sequence[ChatCompletionResponseStreamChunk]) -> ChatCompletionResponse:
    """Return the whole response that a stream of chunks amounts to."""
    last = chunks[-1] if chunks else None
    return ChatCompletionResponse(
        content="".join(chunk.text_delta for chunk in chunks),
        tool_calls=[chunk.tool_call for chunk in chunks if chunk.tool_call is not None],
        stop_reason=last.stop_reason if last else None,
        logprobs=_joined_logprobs(chunks),
        usage=last.usage if last else None,
    )


class Inference(Protocol):
    """Generate text with a served model."""

    @webmethod(route="/completion", operation_id="post_completion", routed_by="model")
    async def completion(self, request: CompletionRequest) -> CompletionResponse:
        """Continue a text."""
        ...

    @webmethod(
        route="/completion",
        operation_id="post_completion",
        routed_by="model",
        assemble=assemble_completion,
    )
    def stream_completion(
        self, request: CompletionRequest
    ) -> AsyncIterator[CompletionResponseStreamChunk]:
        """Continue a text, token by token."""
        ...

    @webmethod(route="/chat_completion", operation_id="post_chat_completion", routed_by="model")
    async def chat_completion(self, request: ChatCompletionRequest) -> ChatCompletionResponse:
        """Answer a dialog."""
        ...

    @webmethod(
        route="/chat_completion",
        operation_id="post_chat_completion",
        routed_by="model",
        assemble=assemble_chat,
    )
    def stream_chat_completion(
        self, request: ChatCompletionRequest
    ) -> AsyncIterator[ChatCompletionResponseStreamChunk]:
        """Answer a dialog, token by token."""
        ...

    @webmethod(route="/batch_completion", operation_id="post_batch_completion", routed_by="model")
    def batch_completion(
        self, request: BatchCompletionRequest
    ) -> AsyncIterator[CompletionResponse]:
        """Continue many texts; the responses come in the order of the texts, each as soon as its turn comes."""
        ...

    @webmethod(
        route="/batch_chat_completion",
        operation_id="post_batch_chat_completion",
        routed_by="model",
    )
    def batch_chat_completion(
        self, request: BatchChatCompletionRequest
    ) -> AsyncIterator[ChatCompletionResponse]:
        """Answer many dialogs; the responses come in the order of the dialogs, each as soon as its turn comes."""
        ...
