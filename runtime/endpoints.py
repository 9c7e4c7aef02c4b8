"""What every HTTP endpoint does that forwards a call: it lets the caller in, reads, forwards, and cancels with the connection."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope, Send

from ..bus.bus import Bus
from ..bus.calls import TIMEOUT_HEADER, TRACE_HEADER
from ..bus.context import is_traceparent, new_traceparent
from ..schemas import AylluError, InvalidRequest, Operation, TooLarge
from .answers import error_response
from .config import GatewayConfig
from .forwarding import ForwardedCall, forward
from .gate import Gate
from .metrics import Metrics

KEEP_ALIVE_SECONDS = 15.0
JSON: Final = b"application/json"
SSE: Final = b"text/event-stream; charset=utf-8"

O = TypeVar("O")  # noqa: E741
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Serving:
    """What the endpoints of one gateway share.

    Attributes:
        bus: where calls go.
        operations: the table of operations, and those of own actors.
        config: the limits.
        metrics: the numbers.
        gate: who may call.
    """

    bus: Bus
    operations: Mapping[str, Operation]
    config: GatewayConfig
    metrics: Metrics
    gate: Gate


class Endpoint(ABC, Generic[O]):
    """Answers requests for one operation. The end of the connection cancels the call.

    Args:
        serving: what it shares with others.
        operation: callers must be allowed to call it; refused requests are counted under its name.
    """

    def __init__(self, serving: Serving, operation: Operation) -> None:
        self.serving = serving
        self.operation = operation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI)."""
        request = Request(scope, receive)
        trace = _trace_of(request)
        send = _with_headers(send, self.headers(trace))
        serving = self.serving
        with ExitStack() as admitted:
            try:
                caller = serving.gate.caller_of(scope)
                admitted.enter_context(serving.gate.admit(caller, self.operation))
            except AylluError as error:
                serving.metrics.refused(self.operation.name, error.code)
                await error_response(error, scope["path"])(scope, receive, send)
                return
            await self._serve(request, trace, send)

    async def _serve(self, request: Request, trace: str, send: Send) -> None:
        scope, receive = request.scope, request.receive
        try:
            opened, call = await self.open(request, trace)
        except ClientDisconnect:
            return
        except AylluError as error:
            await error_response(error, scope["path"])(scope, receive, send)
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_on_disconnect, receive, tasks.cancel_scope)
            with closing(call):
                await self._answer(request, opened, call, send)
            tasks.cancel_scope.cancel()

    async def _answer(self, request: Request, opened: O, call: ForwardedCall, send: Send) -> None:
        try:
            answering = await self.begin(request, opened, call)
        except AylluError as error:
            await error_response(error, request.scope["path"])(request.scope, request.receive, send)
        else:
            await answering(send)

    def headers(self, trace: str) -> list[tuple[bytes, bytes]]:
        """Return the headers that every answer has."""
        return [(TRACE_HEADER.encode(), trace.encode())]

    @abstractmethod
    async def open(self, request: Request, trace: str) -> tuple[O, ForwardedCall]:
        """Read a request, and start its call.

        Raises:
            AylluError: the request or its call is refused.
            ClientDisconnect: the client is gone.
        """

    @abstractmethod
    async def begin(
        self, request: Request, opened: O, call: ForwardedCall
    ) -> Callable[[Send], Awaitable[None]]:
        """Wait for what the answer begins with, and return what sends all of it.

        Raises:
            AylluError: the call ended in an error before; the answer can still have its status.
        """

    async def forward(
        self, operation: Operation, payload: bytes, *, model: str | None, timeout: float, trace: str
    ) -> ForwardedCall:
        """Start a call; see `forwarding.forward`."""
        return await forward(
            self.serving.bus,
            operation,
            payload,
            model=model,
            timeout=timeout,
            metrics=self.serving.metrics,
            traceparent=trace,
        )


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body of a request.

    Raises:
        TooLarge: it is longer than the limit; no more than that is read.
    """
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"the body is larger than {limit} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def read_timeout(request: Request, operation: Operation, longest: float) -> float:
    """Return the deadline that a request asks for, in seconds, or the operation's own.

    Raises:
        InvalidRequest: it is no number, or out of range.
    """
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return operation.timeout
    try:
        timeout = float(text)
    except ValueError:
        timeout = -1.0
    if not 0 < timeout <= longest:
        raise InvalidRequest(
            f"the header {TIMEOUT_HEADER} is in seconds, over 0 and at most {longest:g}"
        )
    return timeout


def _trace_of(request: Request) -> str:
    """Return the trace that a request belongs to, or that of a new one."""
    given = request.headers.get(TRACE_HEADER, "")
    return given if is_traceparent(given) else new_traceparent()


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers]
        await send(message)

    return send_with_headers


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def send_start(send: Send, media_type: bytes, length: int | None = None) -> None:
    """Begin an answer that is no error."""
    headers = [(b"content-type", media_type), (b"cache-control", b"no-store")]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def send_body(send: Send, body: bytes, *, more: bool) -> None:
    """Send a piece of an answer."""
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def send_whole(send: Send, body: bytes) -> None:
    """Send an answer that is no error."""
    await send_start(send, JSON, len(body))
    await send_body(send, body, more=False)


async def take_alive(send: Send, take: Callable[[], Awaitable[T]]) -> T:
    """Take events of a stream; while none come, send comments, so that proxies do not take the connection for dead."""
    while True:
        with anyio.move_on_after(KEEP_ALIVE_SECONDS):
            return await take()
        await send_body(send, b": keep-alive\n\n", more=True)
