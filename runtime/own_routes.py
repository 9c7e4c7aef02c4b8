"""The HTTP routes of own actors: what no route of the gateway's own takes is looked for among their operations.

Parameters stand in the query string, in the body, or in both (`own_payload`). Answers look like those of ours (`http.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from ..schemas import AylluError, InvalidRequest, Operation, OwnOperation, decode, encode
from ..schemas.webmethod import STREAM_SUFFIX
from .answers import error_response
from .endpoints import Serving
from .http import OperationEndpoint
from .metrics import UNKNOWN
from .own_operations import OwnOperations


def own_payload(own: OwnOperation, query: Sequence[tuple[str, str]], body: bytes) -> bytes:
    """Return the bus payload of an HTTP request. The actor looks into it; here it becomes one object.

    Raises:
        InvalidRequest: a parameter is unknown or stands twice, or the body is not JSON.
    """
    values: dict[str, Any] = {}
    for name, text in query:
        if name in values:
            raise InvalidRequest(f"the query parameter `{name}` stands twice")
        if name not in own.query:
            raise InvalidRequest(f"unknown query parameter `{name}`")
        values[name] = text if own.query[name] == "text" else _value(text)
    if not body:
        return encode(values)
    if own.body:
        return encode({**values, own.body: decode(body, msgspec.Raw)})
    if not values:
        return body
    given = decode(body, dict[str, msgspec.Raw])
    if twice := sorted(values.keys() & given.keys()):
        raise InvalidRequest(f"`{twice[0]}` stands in the query string and in the body")
    return encode({**values, **given})


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text  # The actor says what it should be.


class OwnEndpoint(OperationEndpoint):
    """Answers one operation of own actors."""

    def __init__(self, serving: Serving, own: OwnOperation, operation: Operation) -> None:
        super().__init__(serving, operation)
        self._own = own

    def payload(self, request: Request, body: bytes) -> bytes:
        """Return the bus payload of a request; see `own_payload`."""
        return own_payload(self._own, request.query_params.multi_items(), body)


class OwnRoutes:
    """Takes what no other route takes (ASGI).

    Args:
        serving: what endpoints share.
        own: the operations of own actors.
        otherwise: takes what is none of them.
    """

    def __init__(self, serving: Serving, own: OwnOperations, otherwise: ASGIApp) -> None:
        self._serving = serving
        self._own = own
        self._otherwise = otherwise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        name = name_of(scope["path"]) if scope["type"] == "http" else ""
        if not name or not self._own.may_have(name):
            await self._otherwise(scope, receive, send)
            return
        serving = self._serving
        try:
            serving.gate.caller_of(scope)  # Only who may call costs the bus a question.
            found = await self._own.find(name) or await self._own.find(name + STREAM_SUFFIX)
        except AylluError as error:
            serving.metrics.refused(UNKNOWN, error.code)
            await error_response(error, scope["path"])(scope, receive, send)
            return
        if found is None:
            await self._otherwise(scope, receive, send)
            return
        if scope["method"] not in ("POST", found[0].verb):
            raise HTTPException(405)
        await OwnEndpoint(serving, *found)(scope, receive, send)


def name_of(path: str) -> str:
    """Return the name of the operation that a path may be of; empty if it can be of none."""
    return "" if "." in path else path.strip("/").replace("/", ".")
