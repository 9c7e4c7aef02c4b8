"""A websocket session: JSON-RPC 2.0 (https://www.jsonrpc.org/specification) without I/O.

Text from the client goes in, effects come out: a call to start, a call to cancel, or a frame to send. What actors sent
goes in as bytes and comes out spliced into frames, never decoded. docs/protocol.md is the client's side of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from ..schemas import (
    AylluError,
    InvalidRequest,
    MethodNotFound,
    Operation,
    Overloaded,
    decode,
    encode,
)
from ..schemas.webmethod import STREAM_SUFFIX

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
SERVER_ERROR: Final = -32000
"""Every other error of ours; which one stands in ``error.data``."""

CANCEL_METHOD: Final = "$/cancel"
MERGED_BYTES: Final = 64 << 10
"""How much events that share a frame may amount to; clients limit the size of a frame, often to 1 MiB."""


class _Frame(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client sends."""

    method: str
    jsonrpc: str = ""
    id: str | int | float | None = None
    params: msgspec.Raw = msgspec.Raw(b"{}")
    timeout: float | None = None


class _CancelParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str | int | float


@dataclass(frozen=True, slots=True)
class StartCall:
    """Start a call; ``key`` names it from now on."""

    key: bytes
    operation: Operation
    payload: bytes
    model: str | None
    timeout: float


@dataclass(frozen=True, slots=True)
class FindOperation:
    """Look whether an own actor has an operation of this name, and tell it to `Session.found`; until then ``key`` runs."""

    key: bytes
    method: str
    payload: bytes
    timeout: float | None


@dataclass(frozen=True, slots=True)
class CancelCall:
    """Cancel a call."""

    key: bytes


@dataclass(frozen=True, slots=True)
class SendFrame:
    """Send a text frame that refuses a call: of which operation (empty if unknown), and with which code."""

    frame: bytes
    operation: str
    code: str


Effect = StartCall | FindOperation | CancelCall | SendFrame


class _Refused(Exception):  # noqa: N818
    """A frame that is answered by an error at once."""

    def __init__(
        self, code: int, error: AylluError, key: bytes = b"null", operation: str = ""
    ) -> None:
        self.effect = SendFrame(error_frame(key, error, code), operation, error.info.code)


def _not_found(key: bytes, method: str) -> _Refused:
    return _Refused(METHOD_NOT_FOUND, MethodNotFound(f"there is no operation {method!r}"), key)


def error_frame(key: bytes, error: AylluError, code: int = SERVER_ERROR) -> bytes:
    """Return the response frame of a failed call."""
    body = encode({"code": code, "message": error.message, "data": error.info})
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (key, body)


def select_form(
    operations: Mapping[str, Operation], operation: Operation, value: msgspec.Struct
) -> Operation:
    """Return the streamed form of an operation where the request's ``stream`` flag asks for it (SPEC.md, Operations).

    One of another API is none: somebody else may have announced it, and its callers need another scope.
    """
    if getattr(value, "stream", False):
        form = operations.get(operation.base_name + STREAM_SUFFIX)
        if form is not None and form.api == operation.api:
            return form
    return operation


class Session:
    """The state of one connection: which calls run, and the index of the next event of each.

    Args:
        operations: the table of operations that may be called.
        max_calls: how many calls may run at once.
        max_timeout: the longest deadline that a client may ask for, in seconds.
        may_be_own: tells whether it is worth to look for an operation that is not in the table.
    """

    def __init__(
        self,
        operations: Mapping[str, Operation],
        *,
        max_calls: int,
        max_timeout: float,
        may_be_own: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._operations = operations
        self._may_be_own = may_be_own
        self._max_calls = max_calls
        self._max_timeout = max_timeout
        self._next_index: dict[bytes, int] = {}

    @property
    def running(self) -> int:
        """How many calls run."""
        return len(self._next_index)

    def receive(self, text: str | bytes) -> Effect | None:
        """Take a frame from the client, and return what follows from it."""
        try:
            return self._receive(text)
        except _Refused as refused:
            return refused.effect

    def _receive(self, text: str | bytes) -> Effect | None:
        frame = self._parse(text)
        if frame.method == CANCEL_METHOD:
            return self._cancel(frame)
        key = self._key(frame)
        operation = self._operations.get(frame.method)
        if operation is None and not self._may_be_own(frame.method):
            raise _not_found(key, frame.method)
        if len(self._next_index) >= self._max_calls:
            busy = Overloaded(f"{self._max_calls} calls run on this connection already")
            raise _Refused(SERVER_ERROR, busy, key, operation.name if operation else "")
        payload = bytes(frame.params)
        if operation is None:
            self._next_index[key] = 0
            return FindOperation(key, frame.method, payload, frame.timeout)
        start = self._start(key, operation, payload, frame.timeout)
        self._next_index[key] = 0
        return start

    def found(self, find: FindOperation, operation: Operation | None) -> StartCall | SendFrame:
        """Return what follows once an operation was looked for: the call begins, or ends because there is none, or by its params."""
        try:
            if operation is None:
                raise _not_found(find.key, find.method)
            return self._start(find.key, operation, find.payload, find.timeout)
        except _Refused as refused:
            del self._next_index[find.key]
            return refused.effect

    def _start(
        self, key: bytes, operation: Operation, payload: bytes, asked: float | None
    ) -> StartCall:
        try:
            timeout = self._timeout(asked, operation)
            value = operation.read(payload)
        except InvalidRequest as error:
            raise _Refused(INVALID_PARAMS, error, key, operation.name) from error
        form = select_form(self._operations, operation, value)
        return StartCall(key, form, payload, form.model_of(value), timeout)

    def _parse(self, text: str | bytes) -> _Frame:
        stripped = text.lstrip()
        if stripped[:1] in ("[", b"["):
            error = InvalidRequest("batches are not supported: send calls one by one")
            raise _Refused(INVALID_REQUEST, error)
        try:
            frame = decode(text, _Frame)
        except InvalidRequest as error:
            fits_not = isinstance(error.__cause__, msgspec.ValidationError)
            raise _Refused(INVALID_REQUEST if fits_not else PARSE_ERROR, error) from error
        if frame.jsonrpc != "2.0":
            wrong_version = InvalidRequest('the member `jsonrpc` must be "2.0"')
            raise _Refused(INVALID_REQUEST, wrong_version)
        return frame

    def _key(self, frame: _Frame) -> bytes:
        if frame.id is None:
            error = InvalidRequest("a call needs an `id`, a string or a number")
            raise _Refused(INVALID_REQUEST, error)
        key = encode(frame.id)
        if key in self._next_index:
            # Answered without the id: the client would take the error for the running call's.
            error = InvalidRequest("a call with this id runs already", details={"id": frame.id})
            raise _Refused(INVALID_REQUEST, error)
        return key

    def _timeout(self, asked: float | None, operation: Operation) -> float:
        if asked is None:
            return operation.timeout
        if not 0 < asked <= self._max_timeout:
            raise InvalidRequest(
                f"`timeout` is in seconds, over 0 and at most {self._max_timeout:g}"
            )
        return asked

    def _cancel(self, frame: _Frame) -> CancelCall | None:
        try:
            key = encode(decode(bytes(frame.params), _CancelParams).id)
        except InvalidRequest as error:
            raise _Refused(INVALID_PARAMS, error) from error
        # A call that has ended meanwhile is not an error: its response and the cancel crossed.
        return CancelCall(key) if key in self._next_index else None

    def event_frames(self, key: bytes, events: list[bytes]) -> Iterator[bytes]:
        """Yield the notifications that carry events of a call, in as few frames as `MERGED_BYTES` allows."""
        merged: list[bytes] = []
        size = 0
        for event in events:
            if merged and size + len(event) > MERGED_BYTES:
                yield self._event_frame(key, merged)
                merged, size = [], 0
            merged.append(event)
            size += len(event)
        if merged:
            yield self._event_frame(key, merged)

    def _event_frame(self, key: bytes, events: list[bytes]) -> bytes:
        """Return one notification; the indexes of a call's events are contiguous from 0."""
        first = self._next_index[key]
        self._next_index[key] = first + len(events)
        return b'{"jsonrpc":"2.0","method":"event","params":{"id":%b,"index":%d,"events":[%b]}}' % (
            key,
            first,
            b",".join(events),
        )

    def result_frame(self, key: bytes, result: bytes | None) -> bytes:
        """End a call, and return its response; without a result it tells how many events there were."""
        count = self._next_index.pop(key)
        if result is None:
            result = b'{"count":%d}' % count
        return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (key, result)

    def failure_frame(self, key: bytes, error: AylluError) -> bytes:
        """End a call, and return the response that says why."""
        self._next_index.pop(key, None)
        return error_frame(key, error)
