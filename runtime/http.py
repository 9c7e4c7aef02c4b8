"""The gateway's HTTP side: a route for each operation of the table.

Scalars come in the query string, the composite parameter or the request in the body (SPEC.md, Operations). A reply is
JSON, a list is ``application/jsonl``, a stream is server-sent events: unnamed events are the draft's chunks, ``result``
is the assembled reply, ``error`` an error (SPEC.md, Decision 13). Events that have positions can be followed from the last
one on (`positions.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass

import anyio
import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Message, Receive, Scope, Send

from ..bus.bus import Bus
from ..bus.calls import TIMEOUT_HEADER, TRACE_HEADER
from ..bus.context import is_traceparent, new_traceparent
from ..schemas import (
    AylluError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Operation,
    TooLarge,
    encode,
)
from ..schemas.proxy import single_reply
from ..schemas.webmethod import STREAM_SUFFIX
from ..schemas.wire import convert, decode
from .answers import error_body, error_response
from .config import GatewayConfig
from .forwarding import ForwardedCall, forward
from .gate import Gate
from .metrics import Metrics
from .positions import frame, frame_with_id, has_positions, position_after
from .session import select_form

KEEP_ALIVE_SECONDS = 15.0
JSON = b"application/json"
JSONL = b"application/jsonl"
SSE = b"text/event-stream; charset=utf-8"

Endpoint = Callable[[Scope, Receive, Send], Awaitable[None]]


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


def read_payload(operation: Operation, request: Request, body: bytes) -> bytes:
    """Return the bus payload of an HTTP request.

    Raises:
        InvalidRequest: the query string or the body does not fit the operation; the message names the place.
    """
    query = dict(request.query_params.multi_items())
    if len(query) < len(request.query_params.multi_items()):
        raise InvalidRequest("a query parameter stands twice")
    known = {parameter.name for parameter in operation.parameters if parameter.in_query}
    if unknown := sorted(query.keys() - known):
        raise InvalidRequest(f"unknown query parameter `{unknown[0]}`")
    if not operation.parameters:
        return body or b"{}"
    values: dict[str, object] = {}
    given = position_after(request.headers) if has_positions(operation) else {}
    for parameter in operation.parameters:
        if not parameter.in_query:
            if body or parameter.required:
                values[parameter.name] = decode(body, parameter.type)
        elif parameter.name in given:
            values[parameter.name] = given[parameter.name]  # Newer than what the address says.
        elif parameter.name in query:
            try:
                values[parameter.name] = convert(
                    query[parameter.name], parameter.type, strict=False
                )
            except InvalidRequest as error:
                raise InvalidRequest(
                    f"query parameter `{parameter.name}`: {error.message}"
                ) from error
        elif parameter.required:
            raise InvalidRequest(f"missing query parameter `{parameter.name}`")
    return encode(values)


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


@dataclass(frozen=True, slots=True)
class OperationEndpoint:
    """Answers one operation. The end of the connection cancels the call."""

    bus: Bus
    operations: Mapping[str, Operation]
    operation: Operation
    config: GatewayConfig
    metrics: Metrics
    gate: Gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI)."""
        request = Request(scope, receive)
        trace = _trace_of(request)
        send = _with_trace(send, trace)
        with ExitStack() as admitted:
            try:
                admitted.enter_context(self.gate.admit(self.gate.caller_of(scope), self.operation))
            except AylluError as error:
                self.metrics.refused(self.operation.name, error.code)
                await error_response(error)(scope, receive, send)
                return
            await self._serve(request, trace, send)

    async def _serve(self, request: Request, trace: str, send: Send) -> None:
        scope, receive = request.scope, request.receive
        try:
            operation, call = await self._open(request, trace)
        except ClientDisconnect:
            return
        except AylluError as error:
            await error_response(error)(scope, receive, send)
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_on_disconnect, receive, tasks.cancel_scope)
            with closing(call):
                await self._answer(operation, call, send)
            tasks.cancel_scope.cancel()

    async def _open(self, request: Request, trace: str) -> tuple[Operation, ForwardedCall]:
        try:
            body = await read_body(request, self.config.max_message_bytes)
            payload = read_payload(self.operation, request, body)
            value: msgspec.Struct = self.operation.read(payload)
            timeout = read_timeout(request, self.operation, self.config.max_timeout)
        except AylluError as error:
            self.metrics.refused(self.operation.name, error.info.code)
            raise
        operation = select_form(self.operations, self.operation, value)
        call = await forward(
            self.bus,
            operation,
            payload,
            model=operation.model_of(value),
            timeout=timeout,
            metrics=self.metrics,
            traceparent=trace,
        )
        return operation, call

    async def _answer(self, operation: Operation, call: ForwardedCall, send: Send) -> None:
        """Send the reply, or the stream; an error before the first event has its own HTTP status."""
        try:
            if operation.kind == "unary":
                await _send_whole(send, 200, await single_reply(call))
                return
            events = await call.take()
        except AylluError as error:
            await _send_whole(send, error.http_status, error_body(error))
            return
        if operation.sse:
            framed = frame_with_id if has_positions(operation) else frame
            await _send_events(send, call, events, framed)
        else:
            await _send_lines(send, call, events)


def _trace_of(request: Request) -> str:
    """Return the trace that a request belongs to, or that of a new one."""
    given = request.headers.get(TRACE_HEADER, "")
    return given if is_traceparent(given) else new_traceparent()


def _with_trace(send: Send, trace: str) -> Send:
    async def send_with_trace(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (TRACE_HEADER.encode(), trace.encode())]
        await send(message)

    return send_with_trace


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _send_start(send: Send, status: int, media_type: bytes, length: int | None) -> None:
    headers = [(b"content-type", media_type), (b"cache-control", b"no-store")]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _send_body(send: Send, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _send_whole(send: Send, status: int, body: bytes) -> None:
    await _send_start(send, status, JSON, len(body))
    await _send_body(send, body, more=False)


async def _send_lines(send: Send, call: ForwardedCall, events: list[bytes]) -> None:
    await _send_start(send, 200, JSONL, None)
    last = b""
    try:
        while events:
            await _send_body(send, b"\n".join(events) + b"\n", more=True)
            events = await call.take()
    except AylluError as error:
        last = error_body(error) + b"\n"
    await _send_body(send, last, more=False)


async def _send_events(
    send: Send, call: ForwardedCall, events: list[bytes], framed: Callable[[bytes], bytes]
) -> None:
    await _send_start(send, 200, SSE, None)
    last = b""
    try:
        while events:
            await _send_body(send, b"".join(map(framed, events)), more=True)
            events = await _take_alive(send, call)
        if call.result is not None:
            last = b"event: result\ndata: %b\n\n" % call.result
    except AylluError as error:
        last = b"event: error\ndata: %b\n\n" % error_body(error)
    await _send_body(send, last, more=False)


async def _take_alive(send: Send, call: ForwardedCall) -> list[bytes]:
    """Take events; while none come, send comments, so that proxies do not take the connection for dead."""
    while True:
        with anyio.move_on_after(KEEP_ALIVE_SECONDS):
            return await call.take()
        await _send_body(send, b": keep-alive\n\n", more=True)


def routes_of(
    bus: Bus,
    operations: Mapping[str, Operation],
    config: GatewayConfig,
    metrics: Metrics,
    gate: Gate,
) -> list[BaseRoute]:
    """Return the routes of the table; each with and without a slash at its end."""
    routes: list[BaseRoute] = []
    for operation in operations.values():
        if operation.name.endswith(STREAM_SUFFIX) and operation.base_name in operations:
            continue  # The whole form's route serves both; the request's `stream` chooses.
        endpoint = OperationEndpoint(bus, operations, operation, config, metrics, gate)
        for path in (operation.route.rstrip("/"), operation.route.rstrip("/") + "/"):
            routes.append(Route(path, endpoint, methods=[operation.verb], name=operation.name))
    return routes


async def not_found(request: Request, _: Exception) -> Response:
    """Answer a path that no route has."""
    return error_response(NotFound(f"there is nothing at {request.url.path}"))


async def not_allowed(request: Request, _: Exception) -> Response:
    """Answer a verb that the route does not have."""
    return error_response(MethodNotAllowed(f"{request.method} is not what this route takes"))


async def failed(_: Request, __: Exception) -> Response:
    """Answer where the gateway itself failed; its log has the traceback."""
    return error_response(InternalError("the gateway failed; its log says why"))
