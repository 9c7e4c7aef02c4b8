"""Prompts as requests of OpenAI's protocol, https://platform.openai.com/docs/api-reference/chat/create. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....schemas import (
    InvalidRequest,
    SamplingParams,
    SamplingStrategy,
    ToolDefinition,
    Unsupported,
    encode,
)
from ...prompts import AUTO, REQUIRED, parameters_schema
from ...tool_calls import call_id
from ..engine import TOP_LOGPROBS, Capability, ChatMessage, Generation, Prompt
from ..settings import OpenAISettings

CHAT, COMPLETION = "/chat/completions", "/completions"
SCHEMA_NAME = "answer"


def capabilities_of(settings: OpenAISettings) -> frozenset[Capability]:
    """Return what a server can do, as its settings say."""
    can: dict[Capability, bool] = {
        "json_schema": settings.json_schema,
        "logprobs": settings.logprobs,
        "tools": settings.tools,
        "continuation": settings.continuation != "none",
        "images": settings.images,
    }
    return frozenset(capability for capability, has in can.items() if has)


def request_of(
    prompt: Prompt, generation: Generation, settings: OpenAISettings, model: str, context: int
) -> tuple[str, dict[str, Any]]:
    """Return the path and the body of the request for a prompt.

    Args:
        prompt: the prompt.
        generation: how to answer.
        settings: what the server can do.
        model: what the server calls the model.
        context: the longest prompt and answer together, in tokens.

    Raises:
        InvalidRequest: there is nothing to answer.
        Unsupported: the server lacks a capability for it.
    """
    forced = prompt.tool_choice not in (None, AUTO)
    can = capabilities_of(settings)
    wanted: dict[Capability, bool] = {
        "logprobs": generation.logprobs,
        "tools": bool(prompt.tools),
        "json_schema": generation.json_schema is not None and not forced,
        "answer_choices": generation.answer_choices is not None,
        "continuation": prompt.continues,
        "images": any(message.images for message in prompt.messages),
    }
    for capability, is_wanted in wanted.items():
        if is_wanted and capability not in can:
            raise Unsupported(f"openai: the server of this model lacks the capability {capability}")
    body: dict[str, Any] = {
        **settings.extra,
        "model": model,
        "stream": True,
        "stream_options": {"include_usage": True},
        **_sampling(generation.sampling),
    }
    if generation.max_tokens:
        body["max_tokens"] = generation.max_tokens
    if prompt.text is None:
        return CHAT, body | _chat(prompt, generation, settings, forced=forced)
    return COMPLETION, body | _completion(prompt, generation, context)


def _sampling(sampling: SamplingParams) -> dict[str, Any]:
    values: dict[str, Any]
    if sampling.strategy is SamplingStrategy.greedy:
        values = {"temperature": 0.0, "top_p": 1.0}
    elif sampling.strategy is SamplingStrategy.top_p:
        values = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    else:
        # OpenAI itself knows no top_k, and says so; vLLM, SGLang, llama.cpp and Ollama do.
        values = {"temperature": sampling.temperature, "top_p": 1.0, "top_k": sampling.top_k}
    if sampling.seed is not None:
        values["seed"] = sampling.seed
    if sampling.stop:
        values["stop"] = sampling.stop
    return values


def _completion(prompt: Prompt, generation: Generation, context: int) -> dict[str, Any]:
    if not prompt.text:
        raise InvalidRequest("the prompt is empty")
    if generation.json_schema is not None:
        raise Unsupported("openai: a JSON schema needs a dialog, not a raw prompt")
    fields: dict[str, Any] = {"prompt": prompt.text}
    if not generation.max_tokens:
        # Left out (and, by vLLM, null) it would be 16; servers cut it to what the prompt leaves.
        fields["max_tokens"] = context
    if generation.logprobs:
        fields["logprobs"] = TOP_LOGPROBS
    return fields


def _chat(
    prompt: Prompt, generation: Generation, settings: OpenAISettings, *, forced: bool
) -> dict[str, Any]:
    fields: dict[str, Any] = {"messages": _messages(prompt, native=settings.tools)}
    continues = fields["messages"][-1]["role"] == "assistant"
    if continues and not prompt.continues:
        raise InvalidRequest("the dialog ends in an answer that shall not be continued")
    if continues and generation.json_schema is not None:
        raise Unsupported("openai: an answer under a JSON schema cannot be continued")
    if continues and settings.continuation == "vllm":
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    if prompt.tools:
        fields["tools"] = [_tool(tool, prompt.tool_choice) for tool in prompt.tools]
        fields["tool_choice"] = _tool_choice(prompt.tool_choice)
    if generation.json_schema is not None and not forced:
        schema = {"name": SCHEMA_NAME, "schema": generation.json_schema, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    if generation.logprobs:
        fields |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    return fields


def _tool(tool: ToolDefinition, choice: str | None) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.tool_name, "parameters": parameters_schema(tool)}
    if choice in (REQUIRED, tool.tool_name):
        # Otherwise vLLM lets a forced call have any JSON value as its arguments.
        function["strict"] = True
    if tool.description:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _tool_choice(choice: str | None) -> str | dict[str, Any]:
    if choice in (None, AUTO, REQUIRED):
        return choice or AUTO
    return {"type": "function", "function": {"name": choice}}


def _messages(prompt: Prompt, *, native: bool) -> list[dict[str, Any]]:
    dialog = prompt.messages
    if prompt.continues and dialog and not dialog[-1].text:
        dialog = dialog[:-1]  # nothing was written yet
    if not dialog:
        raise InvalidRequest("the dialog is empty")
    if native:
        return _Dialog(dialog).messages
    # Without native tools their answers are texts, and a message of a tool would have to name its call.
    return [
        {"role": "user" if message.role == "tool" else message.role, "content": _content(message)}
        for message in dialog
    ]


def _content(message: ChatMessage) -> str | list[dict[str, Any]]:
    """Return a message's text, or its parts in order where there are images among it."""
    if not message.images:
        return message.text
    parts: list[dict[str, Any]] = []
    start = 0
    for image in message.images:
        parts += _text_part(message.text[start : image.place])
        parts.append({"type": "image_url", "image_url": {"url": image.url}})
        start = image.place
    return parts + _text_part(message.text[start:])


def _text_part(text: str) -> list[dict[str, Any]]:
    # A line end between text and image is the one that joins the parts of a content.
    text = text.removeprefix("\n")
    return [{"type": "text", "text": text}] if text else []


class _Dialog:
    """Writes messages with calls; the ids that tie answers to calls are made of their places, so that a dialog has one form."""

    def __init__(self, dialog: Sequence[ChatMessage]) -> None:
        self.messages: list[dict[str, Any]] = []
        self._open: list[
            tuple[str, str]
        ] = []  # id and tool of the last calls that have no answer yet
        for number, message in enumerate(dialog):
            if message.tool_calls:
                self._add_calls(number, message)
            elif message.tool_answers or message.role == "tool":
                self._add_answers(number, message)
            else:
                self.messages.append({"role": message.role, "content": _content(message)})

    def _add_calls(self, number: int, message: ChatMessage) -> None:
        self._open = [
            (call_id(number, place), call.tool_name)
            for place, call in enumerate(message.tool_calls)
        ]
        calls = [
            {
                "id": id_,
                "type": "function",
                "function": {"name": call.tool_name, "arguments": encode(call.arguments).decode()},
            }
            for (id_, _), call in zip(self._open, message.tool_calls, strict=True)
        ]
        self.messages.append(
            {"role": message.role, "content": message.text or None, "tool_calls": calls}
        )

    def _add_answers(self, number: int, message: ChatMessage) -> None:
        for place, answer in enumerate(message.tool_answers):
            id_ = self._answered(answer.tool_name) or call_id(number, place)
            self.messages.append({"role": "tool", "tool_call_id": id_, "content": answer.text})
        if message.text and message.role == "tool":
            id_ = self._answered("") or call_id(number, len(message.tool_answers))
            self.messages.append({"role": "tool", "tool_call_id": id_, "content": message.text})
        elif message.text or message.images:
            self.messages.append({"role": message.role, "content": _content(message)})

    def _answered(self, tool: str) -> str | None:
        """Return the id of the first open call of a tool, or else of any."""
        if not self._open:
            return None
        found = next((one for one in self._open if one[1] == tool), self._open[0])
        self._open.remove(found)
        return found[0]
