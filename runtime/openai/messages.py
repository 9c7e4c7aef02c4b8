"""Messages of OpenAI's protocol as our dialogs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ...schemas import (
    Attachment,
    Content,
    Dialog,
    InvalidRequest,
    Message,
    Role,
    ToolCall,
    ToolResponse,
    Unsupported,
)
from ...schemas.wire import decode
from .errors import PARAM, refusal
from .types import (
    AnyMessage,
    AssistantMessage,
    CalledTool,
    ImagePart,
    TextPart,
    ToolMessage,
    UserMessage,
)

_MEDIA_TYPE = re.compile(r"data:(image/[\w.+-]{1,100})[;,]")
ANY_IMAGE = "image/*"
"""The type of an image whose address does not tell it."""


@dataclass(frozen=True, slots=True)
class Talk:
    """What was said, and the beginning of the answer where the last message is one."""

    dialog: Dialog
    assistant_prefix: str | None


def talk_of(messages: list[AnyMessage]) -> Talk:
    """Return messages as a dialog.

    The answers of tools that follow each other are one message of ours. They name their tools by the ids of the calls.

    Raises:
        InvalidRequest: an answer belongs to no call, arguments are not JSON, or there is nothing to answer.
    """
    prefix: str | None = None
    last = messages[-1]
    if isinstance(last, AssistantMessage):
        if last.tool_calls:
            raise refusal("messages", "the calls of the last message have no answers")
        prefix = _text(last.content or "")
        messages = messages[:-1]
    said: list[Message] = []
    tools: dict[str, str] = {}  # the tool of each call, by its id
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if isinstance(message, ToolMessage):
            response = _response(message, tools, where)
            earlier: list[ToolResponse] = []
            if number and isinstance(messages[number - 1], ToolMessage):
                earlier = said.pop().tool_responses
            said.append(Message(Role.tool, "", tool_responses=[*earlier, response]))
        elif isinstance(message, AssistantMessage):
            calls = message.tool_calls or []
            tools |= {call.id: call.function.name for call in calls}
            content = _text(message.content or "")
            said.append(Message(Role.assistant, content, [_call(one, where) for one in calls]))
        elif isinstance(message, UserMessage):
            said.append(Message(Role.user, _content(message.content, where)))
        else:
            said.append(Message(Role.system, _text(message.content)))
    if not said:
        raise refusal("messages", "there is nothing to answer")
    return Talk(Dialog(message=said[-1], message_history=said[:-1] or None), prefix)


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def _content(content: str | list[TextPart | ImagePart], where: str) -> Content:
    if isinstance(content, str):
        return content
    parts = [
        part.text if isinstance(part, TextPart) else _attachment(part.image_url.url, where)
        for part in content
    ]
    texts = [part for part in parts if isinstance(part, str)]
    return "\n".join(texts) if len(texts) == len(parts) else parts


def _attachment(url: str, where: str) -> Attachment:
    if not url.startswith("data:"):
        return Attachment(url, ANY_IMAGE)
    found = _MEDIA_TYPE.match(url)
    if found is None:
        raise Unsupported(
            f"{where}: an image_url at a data: address is an image", details={PARAM: "messages"}
        )
    return Attachment(url, found[1])


def _call(called: CalledTool, where: str) -> ToolCall:
    try:
        arguments: dict[str, Any] = decode(called.function.arguments, dict[str, Any])
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{where}: the arguments of the call {called.id!r} are not a JSON object: {error.message}",
            details={PARAM: "messages"},
        ) from error
    return ToolCall(tool_name=called.function.name, arguments=arguments)


def _response(message: ToolMessage, tools: dict[str, str], where: str) -> ToolResponse:
    name = tools.get(message.tool_call_id)
    if name is None:
        raise InvalidRequest(
            f"{where}: no message before it has a call with the id {message.tool_call_id!r}",
            details={PARAM: "messages"},
        )
    return ToolResponse(tool_name=name, content=_text(message.content))
