"""Files of prompts, as commands take them: JSON lines with ``prompt`` and maybe ``reference``, or text, a prompt a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ..schemas import InvalidRequest, Message, Role

_JSON_LINES = frozenset((".jsonl", ".ndjson"))


class PromptRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of a file: what is asked, and what an answer is compared with."""

    prompt: str
    reference: Any = None


def read_prompts(path: Path) -> tuple[list[Message], list[Any]]:
    """Return the prompts of a file, and their references if any has one.

    Raises:
        InvalidRequest: it cannot be read, or a line of it is none; the message has the file and the line.
    """
    try:
        # Other ends of lines than this one may stand within a text.
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not UTF-8 text") from error
    rows = [_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise InvalidRequest(f"{path} has no prompts")
    references = [row.reference for row in rows]
    with_one = any(reference is not None for reference in references)
    return [Message(Role.user, row.prompt) for row in rows], references if with_one else []


def _row(path: Path, number: int, line: str) -> PromptRow:
    if path.suffix.lower() not in _JSON_LINES:
        return PromptRow(line.strip())
    try:
        return msgspec.json.decode(line, type=PromptRow)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{path}, line {number}: {error}") from error
