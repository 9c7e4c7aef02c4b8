"""Tool calls in an answer, found by the parser of vLLM that knows the model's own format."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ....schemas import ToolCall

if TYPE_CHECKING:
    from .contact import CallParser

log = logging.getLogger(__name__)

_ARGUMENTS = msgspec.json.Decoder(dict[str, Any])


class Calls:
    """Separates text from calls while an answer comes.

    The parser's streaming half tells what is plain text, at once; the calls are read from the whole answer, at its end. What
    was neither given out nor is a call is text: nothing is lost.

    Args:
        parser: the model's.
        tools: what may be called, as OpenAI's protocol describes it.
    """

    def __init__(self, parser: CallParser, tools: Sequence[Mapping[str, Any]]) -> None:
        self._parser, self._request = parser.start(tools)
        self._text = ""
        self._given = ""
        self._tokens: list[int] = []
        self._failed = False

    def feed(self, text: str, tokens: Sequence[int]) -> str:
        """Take a piece of the answer, and return what is known to be text."""
        before, seen = self._text, list(self._tokens)
        self._text += text
        self._tokens += tokens
        if self._failed or not text:
            return ""
        try:
            found = self._parser.extract_tool_calls_streaming(
                before, self._text, text, seen, self._tokens, list(tokens), self._request
            )
        except Exception:
            # The parsers are many, and of many hands; what they miss here is found at the end.
            log.exception("vLLM's parser of tool calls failed")
            self._failed = True
            return ""
        content: str = (found.content if found is not None else None) or ""
        self._given += content
        return content

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Return the text that was withheld, and the calls."""
        found: list[ToolCall] = []
        rest: str | None = self._text
        try:
            extracted = self._parser.extract_tool_calls(self._text, self._request)
            found = [_call(call) for call in extracted.tool_calls]
        except Exception:
            log.exception("vLLM's parser of tool calls failed")
            found = []
        else:
            if found:
                rest = extracted.content
        rest = rest or ""
        return (rest[len(self._given) :] if rest.startswith(self._given) else ""), found


def _call(call: Any) -> ToolCall:
    return ToolCall(
        tool_name=call.function.name, arguments=_ARGUMENTS.decode(call.function.arguments)
    )
