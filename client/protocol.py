"""The client's side of the websocket protocol, without I/O: calls out, frames in."""

from __future__ import annotations

from collections import deque

import msgspec

from ..schemas import AylluError, BusError, Cancelled, ErrorInfo, SlowConsumer, decode, encode
from ..schemas.errors import error_from

MAX_UNREAD = 10_000
MAX_UNREAD_BYTES = 64 << 20
"""How many events, and bytes of them, of one call may wait to be read; a call whose reader falls further behind is
cancelled, since all calls share the connection and none may hold up the others."""


class _EventParams(msgspec.Struct, frozen=True):
    id: int
    index: int
    events: list[msgspec.Raw]


class _RpcError(msgspec.Struct, frozen=True):
    code: int
    message: str
    data: ErrorInfo | None = None


class _Frame(msgspec.Struct, frozen=True):
    """What the gateway sends: a notification of events, or the response to a call."""

    method: str | None = None
    params: _EventParams | None = None
    id: int | None = None
    result: msgspec.Raw = msgspec.Raw(b"")
    error: _RpcError | None = None


class CallState:
    """What is known of one call.

    Attributes:
        events: what came and was not yet read.
        ended: whether nothing more comes.
        error: why it failed, if it did.
        result: the response, if it ended well.
    """

    __slots__ = ("_next_index", "_unread_bytes", "ended", "error", "events", "result")

    def __init__(self) -> None:
        self.events: deque[bytes] = deque()
        self.ended = False
        self.error: AylluError | None = None
        self.result: bytes | None = None
        self._next_index = 0
        self._unread_bytes = 0

    def take(self) -> list[bytes]:
        """Return the events that wait."""
        events = list(self.events)
        self.events.clear()
        self._unread_bytes = 0
        return events

    def add(self, index: int, events: list[msgspec.Raw]) -> None:
        """Take events; a gap in their indexes fails the call."""
        received = [bytes(event) for event in events]
        self._unread_bytes += sum(map(len, received))
        if index != self._next_index:
            self.fail(BusError("events of a streamed call were lost on the way"))
        elif len(self.events) + len(events) > MAX_UNREAD or self._unread_bytes > MAX_UNREAD_BYTES:
            self.fail(SlowConsumer("too many events of the call wait to be read"))
        else:
            self._next_index += len(events)
            self.events.extend(received)

    def fail(self, error: AylluError) -> None:
        """End the call with an error."""
        if not self.ended:
            self.ended = True
            self.error = error


class ClientSession:
    """All calls of one connection.

    Attributes:
        outgoing: frames to send and clear.
    """

    def __init__(self) -> None:
        self._calls: dict[int, CallState] = {}
        self._next_id = 0
        self.outgoing: list[str] = []

    @property
    def running(self) -> int:
        """How many calls have not ended."""
        return len(self._calls)

    def start(self, method: str, payload: bytes, timeout: float) -> tuple[int, CallState]:
        """Begin a call with a deadline in seconds: its frame goes to `outgoing`."""
        self._next_id += 1
        frame = b'{"jsonrpc":"2.0","id":%d,"method":%b,"params":%b,"timeout":%b}' % (
            self._next_id,
            encode(method),
            payload,
            encode(timeout),
        )
        self.outgoing.append(frame.decode())
        state = self._calls[self._next_id] = CallState()
        return self._next_id, state

    def cancel(self, call: int) -> None:
        """Leave a call."""
        state = self._calls.pop(call, None)
        if state is not None:
            state.fail(Cancelled("the caller cancelled the call"))
            frame = b'{"jsonrpc":"2.0","method":"$/cancel","params":{"id":%d}}' % call
            self.outgoing.append(frame.decode())

    def receive(self, text: str | bytes) -> CallState | None:
        """Take a frame, and return the call that it changed."""
        frame = decode(text, _Frame)
        if frame.params is not None:
            state = self._calls.get(frame.params.id)
            if state is not None:
                state.add(frame.params.index, frame.params.events)
                if state.ended:
                    self.cancel(frame.params.id)
            return state
        state = self._calls.pop(frame.id, None) if frame.id is not None else None
        if state is not None and frame.error is not None:
            state.fail(_error(frame.error))
        elif state is not None and not state.ended:
            state.ended = True
            state.result = bytes(frame.result)
        return state

    def lose(self, error: AylluError) -> list[CallState]:
        """End all calls: the connection is gone. Frames that were not sent are dropped."""
        lost = list(self._calls.values())
        for state in lost:
            state.fail(error)
        self._calls.clear()
        self.outgoing.clear()
        return lost


def _error(error: _RpcError) -> AylluError:
    info = error.data or ErrorInfo(code="unknown", message=error.message)
    return error_from(info)
