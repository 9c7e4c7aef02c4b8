"""What functions return, as content."""

from __future__ import annotations

from typing import Any

import msgspec

from ....schemas import Attachment, Content, EngineError


def content_of(value: Any) -> Content:
    """Return what a function returned as content: texts and attachments as they are, anything else as JSON.

    Raises:
        EngineError: it is nothing that JSON can say.
    """
    if isinstance(value, str | Attachment):
        return value
    if _has_attachments(value):
        return list(value)
    try:
        return msgspec.json.encode(value).decode()
    except Exception as error:
        told = f"the function returned a {type(value).__name__}, which is neither text nor JSON"
        raise EngineError(told) from error


def _has_attachments(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and any(isinstance(part, Attachment) for part in value)
        and all(isinstance(part, str | Attachment) for part in value)
    )
