"""Tool calls in the text of a model: how they are written, and how they are found while the text arrives.

The format is the one that SmolLM2-Instruct was trained with: a JSON list of calls between two markers,
``<tool_call>[{"name": "...", "arguments": {...}}]</tool_call>``. A single call without the list is understood too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..schemas import ToolCall, encode
from .engines.stops import overlap
from .untrusted import json_without_control_tokens

OPENING = "<tool_call>"
CLOSING = "</tool_call>"


class _WrittenCall(msgspec.Struct):
    """A call as models write it."""

    name: str
    arguments: dict[str, Any] = {}


_DECODER = msgspec.json.Decoder(list[_WrittenCall] | _WrittenCall)


def call_id(message: int, place: int) -> str:
    """Return the id of a call, made of its place in a dialog, so that a dialog has one form.

    Nine letters and digits in all but the longest dialogs, as Mistral's templates demand.
    """
    return f"call{message:03d}{place:02d}"


def render_calls(calls: Sequence[ToolCall]) -> str:
    """Return calls as a model writes them."""
    written = [_WrittenCall(call.tool_name, call.arguments) for call in calls]
    # A model may have copied them from what a tool answered.
    return f"{OPENING}{json_without_control_tokens(encode(written).decode())}{CLOSING}"


def read_calls(text: str) -> list[ToolCall]:
    """Return the calls that stand in what a model wrote between the markers; none if it is malformed."""
    try:
        written = _DECODER.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return []
    if isinstance(written, _WrittenCall):
        written = [written]
    if not all(call.name for call in written):
        return []
    return [ToolCall(tool_name=call.name, arguments=call.arguments) for call in written]


class ToolCallParser:
    """Finds tool calls in text that arrives in pieces; however it is cut, the calls and the text are the same.

    Text outside of calls is given out at once, except for an end that may be the beginning of a marker. What stands
    between markers and is not a call is given out as text: nothing is lost.
    """

    def __init__(self) -> None:
        self._outside = ""  # the possible beginning of an opening marker, withheld
        self._call: list[str] | None = None  # what came after an opening marker
        self._tail = ""  # the possible beginning of a closing marker
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> list[str | ToolCall]:
        """Take a piece of text and return what is known by now, in order; no text in it is empty."""
        found: list[str | ToolCall] = []
        while text:
            text = (
                self._feed_outside(text, found) if self._call is None else self._inside(text, found)
            )
        return found

    def finish(self) -> list[str | ToolCall]:
        """Return what was withheld, at the end of the text; a call that lacks only its closing marker counts."""
        found: list[str | ToolCall] = []
        if self._call is not None:
            body = "".join(self._call)
            found += read_calls(body) or [OPENING + body]
        elif self._outside:
            found.append(self._outside)
        return found

    def _feed_outside(self, text: str, found: list[str | ToolCall]) -> str:
        text = self._outside + text
        before, marker, after = text.partition(OPENING)
        kept = 0 if marker else overlap(text, OPENING)
        plain = before[: len(before) - kept]
        self._outside = before[len(plain) :]
        if plain:
            found.append(plain)
        if marker:
            self._call = []
        return after

    def _inside(self, text: str, found: list[str | ToolCall]) -> str:
        # A closing marker inside a JSON string is part of an argument, so strings are followed character by character.
        assert self._call is not None
        for position, character in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
                continue
            self._in_string = character == '"'
            self._tail = (self._tail + character)[-len(CLOSING) :]
            if self._tail == CLOSING:
                self._call.append(text[: position + 1])
                written = "".join(self._call)
                found += read_calls(written[: -len(CLOSING)]) or [OPENING + written]
                self._call, self._tail = None, ""
                return text[position + 1 :]
        self._call.append(text)
        return ""


class ForcedCallParser:
    """Reads an answer that is one call and nothing else; what is not (it was cut off) is given out as text."""

    def __init__(self) -> None:
        self._pieces: list[str] = []

    def feed(self, text: str) -> list[str | ToolCall]:
        """Take a piece of text; nothing is known before the end."""
        self._pieces.append(text)
        return []

    def finish(self) -> list[str | ToolCall]:
        """Return the call, or the text."""
        text = "".join(self._pieces)
        return [*read_calls(text)] or ([text] if text else [])


class PlainText:
    """Finds no calls."""

    def feed(self, text: str) -> list[str | ToolCall]:
        """Return the text."""
        return [text] if text else []

    def finish(self) -> list[str | ToolCall]:
        """Return nothing: nothing is ever withheld."""
        return []
