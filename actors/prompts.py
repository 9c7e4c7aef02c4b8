"""Requests as prompts: dialogs, tools and earlier tool calls in the form that the model was trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    InvalidRequest,
    Message,
    Role,
    ToolDefinition,
    encode,
)
from .attachments import answer_text, text_and_images, text_of
from .engines.engine import ChatMessage, Image, Prompt, ToolAnswer
from .tool_calls import CLOSING, OPENING, render_calls
from .untrusted import NOTE, OUTPUT, json_without_markup, untrusted

AUTO, NONE, REQUIRED = "auto", "none", "required"
MAX_SCHEMA_DEPTH, MAX_SCHEMA_NODES, MAX_SCHEMA_TEXT, MAX_REPETITIONS = 24, 1000, 4000, 1000
ANSWER, END = "<tool_response>", "</tool_response>"
"""Between them stands what a tool answered, see `untrusted`."""
_REPETITIONS = frozenset(
    {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}
)
_DEFINITIONS = ("$defs", "definitions")


def completion_prompt(request: CompletionRequest, *, where: str = "content") -> Prompt:
    """Return the prompt of a completion.

    Raises:
        InvalidRequest: the content is empty, or an attachment is malformed.
        Unsupported: an attachment cannot be read by a text model.
    """
    text = text_of(request.content, model=request.model, where=where)
    if not text:
        raise InvalidRequest(f"{where}: there is nothing to continue")
    return Prompt(text=text)


def chat_prompt(
    request: ChatCompletionRequest,
    *,
    where: str = "dialog",
    native_tools: bool = False,
    images: bool = False,
) -> Prompt:
    """Return the prompt of a dialog, with the beginning of the answer at its end.

    Args:
        request: the dialog, and the tools.
        where: the path of the dialog in the request, for errors.
        native_tools: whether the engine has the capability ``tools``; else tools stand in the system message, and earlier
            calls and their answers in the texts.
        images: whether the engine has the capability ``images``.

    Raises:
        InvalidRequest: there is nothing to answer, a tool is defined wrongly, or an attachment is malformed.
        Unsupported: an attachment cannot be read by a text model.
    """
    dialog = request.dialog
    if dialog.message.role is Role.assistant:
        raise InvalidRequest(
            f"{where}.message: it is the assistant's turn; the beginning of an answer is `assistant_prefix`"
        )
    read = native_message if native_tools else chat_message
    messages = [
        read(message, request.model, f"{where}.message_history[{number}]", images=images)
        for number, message in enumerate(dialog.message_history or ())
    ]
    messages.append(read(dialog.message, request.model, f"{where}.message", images=images))
    last = messages[-1]
    if not (last.text or last.tool_answers or last.images):
        raise InvalidRequest(f"{where}.message: there is nothing to answer")
    tools = [] if request.tool_choice == NONE else request.available_tools
    for tool in tools if native_tools else ():
        parameters_schema(tool)  # is one
    notes = [_tool_instructions(tools)] if tools and not native_tools else []
    if tools or any(map(_is_answer, [*(dialog.message_history or ()), dialog.message])):
        notes.append(NOTE)
    if notes:
        if messages[0].role == Role.system:
            notes.insert(0, messages.pop(0).text)
        messages.insert(0, ChatMessage(Role.system, "\n\n".join(notes)))
    if request.assistant_prefix:
        begun = request.assistant_prefix
        messages.append(ChatMessage(Role.assistant, begun))
    return Prompt(
        messages=messages,
        continues=bool(request.assistant_prefix),
        tools=tools if native_tools else (),
        tool_choice=request.tool_choice if native_tools and tools else None,
    )


def answer_schema(request: ChatCompletionRequest) -> dict[str, Any] | None:
    """Return the JSON schema that a request constrains its answer by, unless it forces a call.

    Raises:
        InvalidRequest: it is too large, or the request has tools that may be called.
    """
    schema = request.json_schema
    if schema is not None:
        if request.available_tools and request.tool_choice != NONE:
            raise InvalidRequest(
                "json_schema: the answer cannot be a call too; leave out available_tools, or let tool_choice be none"
            )
        _check_size(schema, "json_schema")
    return schema


def forced_call_schema(request: ChatCompletionRequest) -> dict[str, Any] | None:
    """Return the JSON schema of the tool call that a request forces; None where the model may decide.

    Raises:
        InvalidRequest: a forced tool is not among the available ones, or a tool is defined wrongly.
    """
    choice = request.tool_choice
    tools = {tool.tool_name: tool for tool in request.available_tools}
    if len(tools) < len(request.available_tools):
        raise InvalidRequest("available_tools: two tools have the same name")
    if choice in {None, AUTO, NONE}:
        return None
    if choice == REQUIRED:
        forced = request.available_tools
        if not forced:
            raise InvalidRequest(
                "tool_choice: a call is required, but there are no available_tools"
            )
    elif choice in tools:
        forced = [tools[choice]]
    else:
        raise InvalidRequest(f"tool_choice: the tool {choice!r} is not among the available_tools")
    if request.assistant_prefix:
        raise InvalidRequest("assistant_prefix: a forced tool call cannot be continued")
    for tool in forced:
        _check_size(tool.parameters, f"available_tools: {tool.tool_name!r}")
    shared: dict[str, dict[str, Any]] = {}
    calls = [_call_schema(tool, shared) for tool in forced]
    return {**(calls[0] if len(calls) == 1 else {"anyOf": calls}), **shared}


def _check_size(schema: object, where: str) -> None:
    """Refuse schemas that would keep the engine's grammar compiler busy; it cannot be interrupted.

    Raises:
        InvalidRequest: the schema nests too deep, is too large, or repeats too often.
    """
    waiting: list[tuple[object, int]] = [(schema, 1)]
    seen = 0
    while waiting:
        value, depth = waiting.pop()
        seen += 1
        if depth > MAX_SCHEMA_DEPTH or seen > MAX_SCHEMA_NODES:
            raise InvalidRequest(
                f"{where}: the schema is too large to be enforced (at most {MAX_SCHEMA_NODES} values, "
                f"{MAX_SCHEMA_DEPTH} levels)"
            )
        if isinstance(value, dict):
            for keyword in _REPETITIONS & value.keys():
                count = value[keyword]
                if isinstance(count, int | float) and count > MAX_REPETITIONS:
                    raise InvalidRequest(
                        f"{where}: `{keyword}` in the schema is over {MAX_REPETITIONS}"
                    )
            waiting += [(child, depth + 1) for child in value.values()]
        elif isinstance(value, list):
            waiting += [(child, depth + 1) for child in value]
        elif isinstance(value, str) and len(value) > MAX_SCHEMA_TEXT:
            raise InvalidRequest(f"{where}: a text in the schema is too long")


def parameters_schema(tool: ToolDefinition) -> dict[str, Any]:
    """Return the JSON schema of a tool's arguments object, from either form of `ToolDefinition.parameters`.

    Raises:
        InvalidRequest: the parameters are neither; the message names the tool and the parameter.
    """
    parameters = tool.parameters or {}
    if parameters.get("type") == "object" or isinstance(parameters.get("properties"), dict):
        return parameters
    properties: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, str):
            properties[name] = {"description": value}
        elif isinstance(value, dict):
            properties[name] = value
        else:
            raise InvalidRequest(
                f"available_tools: parameter {name!r} of {tool.tool_name!r} is neither a schema nor a description"
            )
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _call_schema(tool: ToolDefinition, shared: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of a call of a tool; definitions move to ``shared``, since references start at the root."""
    parameters = dict(parameters_schema(tool))
    for keyword in _DEFINITIONS:
        definitions: Mapping[str, Any] = parameters.pop(keyword, {})
        if not isinstance(definitions, dict):
            raise InvalidRequest(
                f"available_tools: {keyword} of {tool.tool_name!r} is not an object"
            )
        for name, definition in definitions.items():
            known = shared.setdefault(keyword, {}).setdefault(name, definition)
            if known != definition:
                raise InvalidRequest(
                    f"available_tools: {tool.tool_name!r} and another tool define {name!r} differently; force one"
                )
    return {
        "type": "object",
        "properties": {"name": {"const": tool.tool_name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _tool_instructions(tools: Sequence[ToolDefinition]) -> str:
    definitions = [
        {
            "name": tool.tool_name,
            "description": tool.description or "",
            "parameters": parameters_schema(tool),
        }
        for tool in tools
    ]
    return (
        "You can call tools to answer the user. These are the tools, as JSON:\n"
        f"<tools>{encode(definitions).decode()}</tools>\n\n"
        "To call tools, write one JSON list of calls between the markers, with all required arguments:\n"
        f'{OPENING}[{{"name": "tool name", "arguments": {{"argument": "value"}}}}]{CLOSING}\n'
        "When no tool is of help, answer without them."
    )


def chat_message(message: Message, model: str, where: str, *, images: bool = False) -> ChatMessage:
    """Return a message as a text model reads it: its attachments, tool calls and their answers are text too.

    What a tool answered cannot leave the markers that it stands between, whatever it is; see `untrusted`.

    Args:
        message: what was said.
        model: the name of the model that shall read it, for errors.
        where: the path of the message in the request, for errors.
        images: whether the model takes images.

    Raises:
        InvalidRequest: an attachment is malformed.
        Unsupported: an attachment cannot be read by the model.
    """
    text, found = _said(message, model, where, images=images)
    if text and message.role is Role.tool:
        text = f"{ANSWER}{text}{END}"
    parts = [text] if text else []
    if message.tool_calls:
        parts.append(render_calls(message.tool_calls))
    for response in message.tool_responses:
        written = {"name": response.tool_name, OUTPUT: answer_text(response.content)}
        parts.append(f"{ANSWER}{json_without_markup(written)}{END}")
    return ChatMessage(message.role, "\n".join(parts), images=found)


def native_message(
    message: Message, model: str, where: str, *, images: bool = False
) -> ChatMessage:
    """Return a message with its calls and their answers beside its text; see `chat_message`."""
    text, found = _said(message, model, where, images=images)
    answers = [
        ToolAnswer(response.tool_name, untrusted(answer_text(response.content)))
        for response in message.tool_responses
    ]
    return ChatMessage(message.role, text, message.tool_calls, answers, found)


def _said(message: Message, model: str, where: str, *, images: bool) -> tuple[str, Sequence[Image]]:
    if message.role is Role.tool:
        text = answer_text(message.content)
        return untrusted(text) if text else "", ()
    of_user = message.role is Role.user
    text, found = text_and_images(
        message.content, model=model, where=f"{where}.content", images=images and of_user
    )
    return text, found


def _is_answer(message: Message) -> bool:
    return message.role is Role.tool or bool(message.tool_responses)
