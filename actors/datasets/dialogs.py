"""Dialogs in a column: messages as the draft writes them, or as a list."""

from __future__ import annotations

from typing import Any

import msgspec

from ...schemas import Content, InvalidRequest, Role, ToolCall, ToolResponse
from ...schemas.wire import convert


class SaidMessage(msgspec.Struct, frozen=True):
    """A message of a dialog. Fields that others add, such as a weight, are not looked at."""

    role: Role
    content: Content = ""
    tool_calls: list[ToolCall | Any] = []
    tool_responses: list[ToolResponse | Any] = []


class _SaidDialog(msgspec.Struct, frozen=True):
    message: SaidMessage
    message_history: list[SaidMessage] = []


def messages_of(value: object) -> list[SaidMessage]:
    """Return the messages of a dialog, in the order in which they were said.

    Args:
        value: a list of messages, or the draft's ``{"message": ..., "message_history": [...]}``.

    Raises:
        InvalidRequest: it is neither, or there are no messages.
    """
    value = _without_nulls(value)
    if isinstance(value, dict):
        dialog = convert(value, _SaidDialog)
        return [*dialog.message_history, dialog.message]
    if not isinstance(value, list):
        raise InvalidRequest("it is neither a list of messages nor a dialog")
    if not value:
        raise InvalidRequest("it has no messages")
    return convert(value, list[SaidMessage])


def plain_messages(value: object) -> list[dict[str, str]]:
    """Return the messages of a dialog as ``{"role": ..., "content": ...}``, for training.

    Raises:
        InvalidRequest: it is no dialog, or something in it is not text.
    """
    return [
        {"role": message.role.value, "content": _text_of(message, number)}
        for number, message in enumerate(messages_of(value), start=1)
    ]


def _text_of(message: SaidMessage, number: int) -> str:
    if message.tool_calls or message.tool_responses:
        raise InvalidRequest(f"message {number} calls a tool or answers a call: it is not text")
    parts = message.content if isinstance(message.content, list) else [message.content]
    texts = [part for part in parts if isinstance(part, str)]
    if len(texts) != len(parts):
        raise InvalidRequest(f"message {number} has an attachment: it is not text")
    return "\n".join(texts)


def _without_nulls(value: object) -> object:
    """Leave out fields that are null: a table of Parquet has each field in each message."""
    if isinstance(value, dict):
        return {
            name: _without_nulls(inner) if name in ("message", "message_history") else inner
            for name, inner in value.items()
            if inner is not None
        }
    if isinstance(value, list):
        return [_without_nulls(one) if isinstance(one, dict) else one for one in value]
    return value
