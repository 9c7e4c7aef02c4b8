"""The inference actor: one model behind the Inference API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec.structs import replace

from ..bus.slots import Slots
from ..schemas import (
    AnswerChoice,
    BatchChatCompletionRequest,
    BatchCompletionRequest,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionResponseStreamChunk,
    CompletionRequest,
    CompletionResponse,
    CompletionResponseStreamChunk,
    Inference,
    Model,
    ModelNotFound,
    TokenUsage,
    ToolCall,
    Unsupported,
    assemble_chat,
    assemble_completion,
    encode,
)
from .answers import choices_of
from .attachments import fetched_contents, fetched_dialogs
from .attachments.settings import AttachmentsConfig
from .engines.engine import Delta, Generation, InferenceEngine, Prompt
from .ordered import Job, in_order
from .prompts import NONE, answer_schema, chat_prompt, completion_prompt, forced_call_schema
from .tool_calls import ForcedCallParser, PlainText, ToolCallParser

T = TypeVar("T")
_ChatPrompt = tuple[Prompt, dict[str, Any] | None]
"""A prompt, and the JSON schema of the call that is forced."""

ATTACHMENTS = AttachmentsConfig()

WAITING = 100
"""How many requests may wait for a slot where nothing is said."""
AHEAD = 4
"""How many items of a batch may wait for their turn, or to be read, for each that is generated."""


class InferenceActor(Inference):
    """Generates text with one model.

    Args:
        engine: runs the model, and is entered by whoever owns it.
        name: what requests call the model.
        aliases: other names for it.
        base: the model that it was trained from, if it is a registered one.
        version: of a registered one.
        waiting: how many requests may wait for a slot of the engine.
        attachments: what those of a request may cost, and from where they may come.
        prices: cost units of a thousand tokens of prompts and of answers.

    Attributes:
        slots: those of the engine; a request has one, and a batch further ones while no request wants them.
    """

    service_name = "inference"

    def __init__(
        self,
        engine: InferenceEngine,
        name: str,
        aliases: Sequence[str] = (),
        *,
        base: str | None = None,
        version: int | None = None,
        waiting: int = WAITING,
        attachments: AttachmentsConfig = ATTACHMENTS,
        prices: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        self.models = frozenset((name, *aliases))
        described = Model(
            name=name,
            engine=engine.name,
            context=engine.context,
            aliases=sorted(set(aliases)),
            capabilities=sorted(engine.capabilities),
            base=base,
            version=version,
            prompt_price=prices[0],
            completion_price=prices[1],
        )
        self.service_metadata = {"models": encode([described]).decode()}
        self.slots = Slots(engine.slots, waiting=waiting)
        self._engine = engine
        self._name = name
        self._attachments = attachments
        self._images = "images" in engine.capabilities
        self._wanted = 0  # generations that run or wait for a slot
        self._prompt_tokens = 0
        self._completion_tokens = 0

    def service_stats(self) -> dict[str, Any]:
        """Return what the engine is doing, and the tokens of all generations that came to their end."""
        slots = self._engine.slots
        return {
            "model": self._name,
            "slots": slots,
            "slots_in_use": min(self._wanted, slots),
            "waiting": self.slots.waiting + max(0, self._wanted - slots),
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": self._completion_tokens,
        }

    async def completion(self, request: CompletionRequest) -> CompletionResponse:
        """Continue a text."""
        return await self._completed(request)

    def stream_completion(
        self, request: CompletionRequest
    ) -> AsyncGenerator[CompletionResponseStreamChunk, None]:
        """Continue a text, token by token."""
        return self._text(request)

    async def chat_completion(self, request: ChatCompletionRequest) -> ChatCompletionResponse:
        """Answer a dialog."""
        return await self._answered(request)

    def stream_chat_completion(
        self, request: ChatCompletionRequest
    ) -> AsyncGenerator[ChatCompletionResponseStreamChunk, None]:
        """Answer a dialog, token by token; each tool call comes whole in a chunk of its own."""
        return self._chat(request)

    async def batch_completion(
        self, request: BatchCompletionRequest
    ) -> AsyncGenerator[CompletionResponse, None]:
        """Continue many texts; responses in order. A text that cannot be a prompt refuses the whole batch at once."""
        requests = [
            CompletionRequest(content=content, **_settings(request, "content_batch"))
            for content in request.content_batch
        ]
        places = [f"content_batch[{number}]" for number in range(len(requests))]
        prompts = await self._completion_prompts(requests, places)
        jobs = [
            partial(self._completed, one, prompt)
            for one, prompt in zip(requests, prompts, strict=True)
        ]
        async with aclosing(self._in_order(jobs)) as responses:
            async for response in responses:
                yield response

    async def batch_chat_completion(
        self, request: BatchChatCompletionRequest
    ) -> AsyncGenerator[ChatCompletionResponse, None]:
        """Answer many dialogs; responses in order. A dialog that cannot be a prompt refuses the whole batch at once."""
        requests = [
            ChatCompletionRequest(dialog=dialog, **_settings(request, "batch_dialogs"))
            for dialog in request.batch_dialogs
        ]
        places = [f"batch_dialogs[{number}]" for number in range(len(requests))]
        prompts = await self._chat_prompts(requests, places)
        jobs = [
            partial(self._answered, one, prompt)
            for one, prompt in zip(requests, prompts, strict=True)
        ]
        async with aclosing(self._in_order(jobs)) as responses:
            async for response in responses:
                yield response

    def _in_order(self, jobs: Sequence[Job[T]]) -> AsyncGenerator[T, None]:
        slots = self._engine.slots
        held = [partial(self._in_slot, job) for job in jobs]
        return in_order(held, at_once=slots, ahead=slots * AHEAD)

    async def _completion_prompts(
        self, requests: Sequence[CompletionRequest], places: Sequence[str]
    ) -> list[Prompt]:
        """Return the prompts of one request, or of all the parts of one; `places` are their paths in it."""
        for request in requests:
            self._check_model(request.model)
        contents = [(place, one.content) for one, place in zip(requests, places, strict=True)]
        fetched = await fetched_contents(contents, self._attachments, images=False)
        return [
            completion_prompt(replace(request, content=content), where=place)
            for request, content, place in zip(requests, fetched, places, strict=True)
        ]

    async def _chat_prompts(
        self, requests: Sequence[ChatCompletionRequest], places: Sequence[str]
    ) -> list[_ChatPrompt]:
        """Return the prompts of one request, or of all the parts of one; `places` are their paths in it."""
        forced = [self._checked(request) for request in requests]
        dialogs = [(place, one.dialog) for one, place in zip(requests, places, strict=True)]
        fetched = await fetched_dialogs(dialogs, self._attachments, images=self._images)
        native_tools = "tools" in self._engine.capabilities
        prompts = [
            chat_prompt(
                replace(request, dialog=dialog),
                where=place,
                native_tools=native_tools,
                images=self._images,
            )
            for request, dialog, place in zip(requests, fetched, places, strict=True)
        ]
        return list(zip(prompts, forced, strict=True))

    def _checked(self, request: ChatCompletionRequest) -> dict[str, Any] | None:
        """Return the JSON schema of the call that a request forces."""
        self._check_model(request.model)
        forced = forced_call_schema(request)
        for wanted, capability in (
            (forced or answer_schema(request) is not None, "json_schema"),
            (choices_of(request), "answer_choices"),
            (request.assistant_prefix, "continuation"),
        ):
            if wanted and capability not in self._engine.capabilities:
                raise Unsupported(
                    f"the engine of the model {request.model} lacks the capability {capability}"
                )
        return forced

    def _check_model(self, model: str) -> None:
        if model not in self.models:
            served = sorted(self.models)
            raise ModelNotFound(f"this actor does not serve {model!r}", details={"served": served})

    async def _in_slot(self, job: Job[T]) -> T:
        async with self.slots.item():
            return await job()

    async def _completed(
        self, request: CompletionRequest, prompt: Prompt | None = None
    ) -> CompletionResponse:
        return assemble_completion([chunk async for chunk in self._text(request, prompt)])

    async def _answered(
        self, request: ChatCompletionRequest, made: _ChatPrompt | None = None
    ) -> ChatCompletionResponse:
        return assemble_chat([chunk async for chunk in self._chat(request, made)])

    @asynccontextmanager
    async def _generate(
        self, prompt: Prompt, generation: Generation
    ) -> AsyncIterator[AsyncGenerator[Delta, None]]:
        self._wanted += 1
        try:
            async with aclosing(self._engine.generate(prompt, generation)) as deltas:
                yield deltas
        finally:
            self._wanted -= 1

    def _count(self, last: Delta) -> None:
        self._prompt_tokens += last.prompt_tokens
        self._completion_tokens += last.completion_tokens

    async def _text(
        self, request: CompletionRequest, prompt: Prompt | None = None
    ) -> AsyncGenerator[CompletionResponseStreamChunk, None]:
        if prompt is None:
            [prompt] = await self._completion_prompts([request], ["content"])
        async with self._generate(prompt, _generation(request)) as deltas:
            async for delta in deltas:
                if delta.stop_reason is not None:
                    self._count(delta)
                yield CompletionResponseStreamChunk(
                    text_delta=delta.text,
                    stop_reason=delta.stop_reason,
                    logprobs=_logprobs(request, delta.logprobs or ()),
                    usage=_usage(delta),
                )

    async def _chat(
        self, request: ChatCompletionRequest, made: _ChatPrompt | None = None
    ) -> AsyncGenerator[ChatCompletionResponseStreamChunk, None]:
        if made is None:
            [made] = await self._chat_prompts([request], ["dialog"])
        prompt, forced = made
        generation = _generation(request, forced or request.json_schema, request.answer_choices)
        parser = _parser(prompt, request, forced)
        tokens: list[dict[str, Any]] = []  # of text that was not given out yet
        async with self._generate(prompt, generation) as deltas:
            async for delta in deltas:
                if delta.logprobs:
                    tokens += delta.logprobs
                found = parser.feed(delta.text)
                if delta.tool_call is not None:
                    found.append(delta.tool_call)
                if delta.stop_reason is not None:
                    found += parser.finish()
                    self._count(delta)
                for piece in found:
                    text, call = ("", piece) if isinstance(piece, ToolCall) else (piece, None)
                    yield ChatCompletionResponseStreamChunk(
                        text_delta=text, tool_call=call, logprobs=_logprobs(request, tokens)
                    )
                    tokens = []
                if delta.stop_reason is not None:
                    yield ChatCompletionResponseStreamChunk(
                        text_delta="",
                        stop_reason=delta.stop_reason,
                        logprobs=_logprobs(request, tokens),
                        usage=_usage(delta),
                    )


def _parser(
    prompt: Prompt, request: ChatCompletionRequest, forced: dict[str, Any] | None
) -> ToolCallParser | ForcedCallParser | PlainText:
    if forced is not None:
        return ForcedCallParser()
    if prompt.tools:
        return PlainText()  # the engine finds the calls
    if request.available_tools and request.tool_choice != NONE:
        return ToolCallParser()
    return PlainText()


def _generation(
    request: CompletionRequest | ChatCompletionRequest,
    schema: dict[str, Any] | None = None,
    choices: Sequence[AnswerChoice] | None = None,
) -> Generation:
    return Generation(
        sampling=request.sampling_params,
        max_tokens=request.max_tokens,
        logprobs=request.logprobs,
        json_schema=schema,
        answer_choices=choices,
    )


def _logprobs(
    request: CompletionRequest | ChatCompletionRequest, tokens: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    return {"content": list(tokens)} if request.logprobs else None


def _usage(delta: Delta) -> TokenUsage | None:
    if delta.stop_reason is None:
        return None
    return TokenUsage(prompt_tokens=delta.prompt_tokens, completion_tokens=delta.completion_tokens)


def _settings(request: msgspec.Struct, items: str) -> dict[str, Any]:
    """Return the fields of a batch that all its items share."""
    return {name: getattr(request, name) for name in request.__struct_fields__ if name != items}
