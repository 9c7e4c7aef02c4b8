"""An answer, from the bytes in which it comes to deltas. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from ....schemas import EngineError, StopReason, ToolCall
from ..engine import Delta
from .chunks import CallFunction, CallPiece, ChatDelta, Choice, read_chunk, read_logprobs
from .errors import Quote, event_error
from .sse import EventParser

DONE = b"[DONE]"
MAX_CALLS, MAX_ARGUMENTS = 128, 1 << 20
_ARGUMENTS = msgspec.json.Decoder(dict[str, Any])


class Answer:
    """Reads one streamed answer; however its bytes are cut, its text and calls are the same.

    Tool calls come in pieces, perhaps several at once, and are given out whole at the end, in order. What a model thinks
    apart from its answer is no part of it. An answer that a filter of the server ended is finished: what came of it stands.

    Args:
        quote: of the server's errors.
        logprobs: whether they are wanted.
        forced: whether the answer is a call.

    Attributes:
        begun: whether anything of it came, be it a thought; until then the prompt may still be read.
        done: whether the server said that nothing follows.
    """

    def __init__(self, quote: Quote, *, logprobs: bool = False, forced: bool = False) -> None:
        self.begun = False
        self.done = False
        self._quote = quote
        self._logprobs = logprobs
        self._forced = forced
        self._events = EventParser()
        self._calls = _Calls()
        self._reason: StopReason | None = None
        self._prompt_tokens = self._completion_tokens = 0
        self._pieces = 0

    @property
    def whole(self) -> bool:
        """Whether the answer has come to its end, whatever else the server sends."""
        return self._reason is not None

    def feed(self, received: bytes) -> list[Delta]:
        """Take bytes of the stream, and return what is new.

        Raises:
            AylluError: the server says so; or what it sends is no answer.
        """
        found: list[Delta] = []
        for data in self._events.feed(received):
            if data == DONE:
                self.done = True
                break
            chunk = read_chunk(data)
            if chunk.error is not None:
                raise event_error(chunk.error, self._quote)
            if chunk.usage is not None:
                self._prompt_tokens = chunk.usage.prompt_tokens or 0
                self._completion_tokens = chunk.usage.completion_tokens or 0
            if chunk.choices:
                self._take(chunk.choices[0], found)
        return found

    def finish(self) -> list[Delta]:
        """Return the end of the answer, when no more bytes come: calls, and the delta with the stop reason.

        Where the server did not count, each piece of text counts as a token, and the prompt as none.

        Raises:
            EngineError: the answer is not whole, or a call in it cannot be read.
        """
        if self._reason is None:
            raise EngineError("the server of the model ended in the middle", retryable=True)
        cut = self._reason is StopReason.max_tokens
        found = self._calls.finish(cut=cut)
        if self._forced and not found and not cut:
            raise EngineError("the server of the model makes no call, though one is forced")
        last = Delta(
            stop_reason=self._reason,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens or self._pieces,
        )
        return [*found, last]

    def _take(self, choice: Choice, found: list[Delta]) -> None:
        text = choice.text
        if choice.delta is not None:
            text = self._text_of(choice.delta)
        logprobs = None
        if self._logprobs and choice.logprobs is not None:
            logprobs = read_logprobs(choice.logprobs)
        if text or logprobs:
            self._pieces += 1
            self.begun = True
            found.append(Delta(text or "", logprobs))
        if choice.finish_reason is not None:
            self.begun = True
            is_cut = choice.finish_reason == "length"
            self._reason = StopReason.max_tokens if is_cut else StopReason.finished_ok

    def _text_of(self, delta: ChatDelta) -> str | None:
        if delta.content:
            return delta.content
        if delta.tool_calls:
            self.begun = True
            self._pieces += 1
            for piece in delta.tool_calls:
                self._calls.add(piece)
        elif delta.reasoning or delta.reasoning_content:
            self.begun = True
            self._pieces += 1
        return delta.refusal


class _Call:
    """A call that is coming."""

    def __init__(self, id_: str | None) -> None:
        self.id = id_
        self.name = ""
        self.arguments: list[str] = []


class _Calls:
    """Puts calls together. A piece belongs to the call at its index; a server without indexes sends whole calls."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._at: dict[int | None, _Call] = {}
        self._size = 0

    def add(self, piece: CallPiece) -> None:
        """Take a piece of a call.

        Raises:
            EngineError: there are too many calls, or too much of them.
        """
        function = piece.function or CallFunction()
        call = self._call_of(piece, function)
        call.name = call.name or function.name or ""
        arguments = function.arguments
        if isinstance(arguments, dict):
            arguments = msgspec.json.encode(arguments).decode()
        if arguments:
            call.arguments.append(arguments)
            self._size += len(arguments)
        if len(self._calls) > MAX_CALLS or self._size > MAX_ARGUMENTS:
            raise EngineError("the server of the model makes too many or too large tool calls")

    def _call_of(self, piece: CallPiece, function: CallFunction) -> _Call:
        known = self._at.get(piece.index)
        # Some servers number no call, or all of them alike; and some repeat a call's name with each piece of it.
        other = piece.index is None or piece.id not in (None, "", known and known.id)
        if known is not None and function.name and known.name and other:
            known = None
        if known is None:
            known = self._at[piece.index] = _Call(piece.id)
            self._calls.append(known)
        return known

    def finish(self, *, cut: bool) -> list[Delta]:
        """Return the calls; of an answer that was cut off, what is no whole call is given out as text.

        Raises:
            EngineError: a call has no name, or arguments that are no JSON object.
        """
        found: list[Delta] = []
        for call in self._calls:
            written = "".join(call.arguments)
            if cut and not written:
                continue
            try:
                arguments = _ARGUMENTS.decode(written or "{}")
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                if not cut:
                    raise EngineError(
                        f"the model calls {call.name[:100]!r} with what is no JSON object"
                    ) from error
                found.append(Delta(written))
                continue
            if not call.name:
                raise EngineError("the model calls a tool without a name")
            found.append(Delta(tool_call=ToolCall(tool_name=call.name, arguments=arguments)))
        return found
