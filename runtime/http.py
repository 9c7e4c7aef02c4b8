"""The gateway's HTTP side: a route for each operation of the table.

Scalars come in the query string, the composite parameter or the request in the body (SPEC.md, Operations). A reply is
JSON, a list is ``application/jsonl``, a stream is server-sent events: unnamed events are the draft's chunks, ``result``
is the assembled reply, ``error`` an error (SPEC.md, Decision 13). Events that have positions can be followed from the last
one on (`positions.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Send

from ..schemas import (
    AylluError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    Operation,
    encode,
)
from ..schemas.proxy import single_reply
from ..schemas.webmethod import STREAM_SUFFIX
from ..schemas.wire import convert, decode
from .answers import error_body, error_response
from .endpoints import (
    SSE,
    Endpoint,
    Serving,
    read_body,
    read_timeout,
    send_body,
    send_start,
    send_whole,
    take_alive,
)
from .forwarding import ForwardedCall
from .positions import Framing, frame, has_positions, position_after
from .session import select_form

JSONL = b"application/jsonl"


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


class OperationEndpoint(Endpoint[Operation]):
    """Answers one operation; what is opened is the form of it that the request chose."""

    async def open(self, request: Request, trace: str) -> tuple[Operation, ForwardedCall]:
        """Read a request, and start its call; see `Endpoint.open`."""
        serving = self.serving
        try:
            body = await read_body(request, serving.config.max_message_bytes)
            payload = self.payload(request, body)
            value: msgspec.Struct = self.operation.read(payload)
            timeout = read_timeout(request, self.operation, serving.config.max_timeout)
        except AylluError as error:
            serving.metrics.refused(self.operation.name, error.info.code)
            raise
        operation = select_form(serving.operations, self.operation, value)
        model = operation.model_of(value)
        call = await self.forward(operation, payload, model=model, timeout=timeout, trace=trace)
        return operation, call

    def payload(self, request: Request, body: bytes) -> bytes:
        """Return the bus payload of a request; see `read_payload`."""
        return read_payload(self.operation, request, body)

    async def begin(
        self, request: Request, opened: Operation, call: ForwardedCall
    ) -> Callable[[Send], Awaitable[None]]:
        """Wait for the reply, or for the first events; see `Endpoint.begin`."""
        if opened.kind == "unary":
            return partial(send_whole, body=await single_reply(call))
        events = await call.take()
        if not opened.sse:
            return partial(_send_lines, call=call, events=events)
        framed = frame
        if has_positions(opened):
            given = {**request.query_params, **position_after(request.headers)}
            framed = Framing(str(given.get("children", ""))).frame
        return partial(_send_events, call=call, events=events, framed=framed)


async def _send_lines(send: Send, call: ForwardedCall, events: list[bytes]) -> None:
    await send_start(send, JSONL)
    last = b""
    try:
        while events:
            await send_body(send, b"\n".join(events) + b"\n", more=True)
            events = await call.take()
    except AylluError as error:
        last = error_body(error) + b"\n"
    await send_body(send, last, more=False)


async def _send_events(
    send: Send, call: ForwardedCall, events: list[bytes], framed: Callable[[bytes], bytes]
) -> None:
    await send_start(send, SSE)
    last = b""
    try:
        while events:
            await send_body(send, b"".join(map(framed, events)), more=True)
            events = await take_alive(send, call.take)
        if call.result is not None:
            last = b"event: result\ndata: %b\n\n" % call.result
    except AylluError as error:
        last = b"event: error\ndata: %b\n\n" % error_body(error)
    await send_body(send, last, more=False)


def routes_of(serving: Serving, operations: Mapping[str, Operation]) -> list[BaseRoute]:
    """Return the routes of the table; each with and without a slash at its end."""
    routes: list[BaseRoute] = []
    for operation in operations.values():
        if operation.name.endswith(STREAM_SUFFIX) and operation.base_name in operations:
            continue  # The whole form's route serves both; the request's `stream` chooses.
        endpoint = OperationEndpoint(serving, operation)
        for path in (operation.route.rstrip("/"), operation.route.rstrip("/") + "/"):
            routes.append(Route(path, endpoint, methods=[operation.verb], name=operation.name))
    return routes


async def not_found(request: Request, _: Exception) -> Response:
    """Answer a path that no route has."""
    path = request.url.path
    return error_response(NotFound(f"there is nothing at {path}"), path)


async def not_allowed(request: Request, _: Exception) -> Response:
    """Answer a verb that the route does not have."""
    error = MethodNotAllowed(f"{request.method} is not what this route takes")
    return error_response(error, request.url.path)


async def failed(request: Request, _: Exception) -> Response:
    """Answer where the gateway itself failed; its log has the traceback."""
    error = InternalError("the gateway failed; its log says why")
    return error_response(error, request.url.path)
