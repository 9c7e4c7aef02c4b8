"""What an inference engine is to its actor: prompts in, text out, cancellable, many at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec

from ...schemas import AnswerChoice, SamplingParams, StopReason, ToolCall, ToolDefinition

Capability = Literal["json_schema", "answer_choices", "logprobs", "images", "continuation", "tools"]

TOP_LOGPROBS = 5
"""How many alternatives each token has where log probabilities are wanted."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a message.

    Attributes:
        url: a ``data:`` URL with an image of a type that `images` knows.
        place: how many characters of the message's text stand before it.
    """

    url: str
    place: int


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What a tool answered, as text that is marked as untrusted."""

    tool_name: str
    text: str


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """A message as chat templates take it: plain text, roles ``system``, ``user``, ``assistant`` or ``tool``.

    Calls and their answers stand beside the text for engines with the capability ``tools`` only; for others they are part of it.
    Images are there for engines with the capability ``images`` only.
    """

    role: str
    text: str
    tool_calls: Sequence[ToolCall] = ()
    tool_answers: Sequence[ToolAnswer] = ()
    images: Sequence[Image] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model shall continue: raw text, or a dialog to which the engine applies the model's own template.

    A dialog may end in an assistant message: with ``continues``, the model goes on in it.

    Attributes:
        text: the raw text.
        messages: the dialog.
        continues: whether its last message is the beginning of the answer.
        tools: what the model may call, for engines with the capability ``tools``: they tell it in its own format, and
            find its calls.
        tool_choice: of these engines: ``required`` or the name of a tool forces a call, which `Generation.json_schema`
            describes too.
    """

    text: str | None = None
    messages: Sequence[ChatMessage] = ()
    continues: bool = False
    tools: Sequence[ToolDefinition] = ()
    tool_choice: str | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """How to generate.

    Attributes:
        sampling: the strategy and its parameters, and the texts that end the answer (and are no part of it).
        max_tokens: the most new tokens; 0 for as many as the context holds.
        logprobs: whether each token's log probability is wanted.
        json_schema: what the text must be, as a JSON schema, if it is constrained.
        answer_choices: the texts of which it must be one, if it is constrained; no more than `grammar.check_choices` admits. Log
            probabilities are those before the constraint or after it, as engines have them; that of the token itself is told
            even where it is not among the likeliest.
    """

    sampling: SamplingParams
    max_tokens: int = 0
    logprobs: bool = False
    json_schema: dict[str, Any] | None = None
    answer_choices: Sequence[AnswerChoice] | None = None

    @property
    def constrained(self) -> bool:
        """Whether the text cannot be any."""
        return self.json_schema is not None or self.answer_choices is not None


class Delta(msgspec.Struct, frozen=True, gc=False):
    """A piece of text. The last one has the stop reason and the counts of tokens (and often no text).

    Attributes:
        text: what is new.
        logprobs: one ``{"token", "logprob", "bytes", "top_logprobs"}`` a token, if wanted.
        tool_call: a whole call, from engines with the capability ``tools``.
        stop_reason: set on the last delta only.
        prompt_tokens: set on the last delta only.
        completion_tokens: set on the last delta only.
    """

    text: str = ""
    logprobs: Sequence[dict[str, Any]] | None = None
    tool_call: ToolCall | None = None
    stop_reason: StopReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class InferenceEngine(Protocol):
    """Runs one model. Used as ``async with engine:``: inside, it is loaded and ready.

    One contract suite (tests/contracts/test_engine.py) runs over all engines.
    """

    name: str
    """What kind of engine it is, for example ``llama_cpp``."""

    context: int
    """The longest prompt and answer together, in tokens."""

    slots: int
    """How many generations run at once; more wait their turn."""

    capabilities: frozenset[Capability]
    """What it can do beyond plain text."""

    async def __aenter__(self) -> InferenceEngine:
        """Load the model.

        Raises:
            EngineError: it cannot be loaded; the message says why.
        """
        ...

    async def __aexit__(self, *exc: object) -> None:
        """Unload it; generations that still run are cancelled."""
        ...

    def generate(self, prompt: Prompt, generation: Generation) -> AsyncGenerator[Delta, None]:
        """Generate text.

        Closing the generator (or cancelling the task that iterates it) stops the engine's work for this prompt, during
        the prefill too, and frees its slot before it returns; waiting for a slot is cancellable at once.

        Raises:
            ContextLengthExceeded: the prompt leaves no room for an answer in the context. (An answer that reaches the end
                of the context before ``max_tokens`` ends with the stop reason ``max_tokens``.)
            Unsupported: a capability is wanted that the engine does not have.
            EngineError: this generation failed.
            EngineDead: the engine is no more.
        """
        ...
