"""MCP over HTTP ("streamable HTTP"): the client of the SDK, with bounds on what a server may send."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
from mcp.client import Transport
from mcp.client.streamable_http import streamable_http_client

from ....schemas import InvalidRequest
from .settings import McpSettings

log = logging.getLogger(__name__)

MAX_BODY = 16 << 20
"""Bytes of an answer, or of one event."""
MAX_STREAM = 64 << 20
"""Bytes of a stream of events."""
CONNECT_SECONDS = 10.0


@asynccontextmanager
async def http_transport(settings: McpSettings) -> AsyncIterator[Transport]:
    """Return the transport of a server that talks over HTTP.

    Raises:
        InvalidRequest: the variable with the token is missing.
    """
    headers = {"Accept-Encoding": "identity", **_authorization(settings)}
    # What takes longer is ended by the call's own deadline.
    timeout = httpx2.Timeout(settings.seconds + CONNECT_SECONDS, connect=CONNECT_SECONDS)
    transport = _Bounded(settings.name)
    async with httpx2.AsyncClient(
        headers=headers, timeout=timeout, transport=transport, trust_env=False
    ) as client:
        yield streamable_http_client(
            settings.url or "", http_client=client, max_sse_event_size=MAX_BODY
        )


def _authorization(settings: McpSettings) -> dict[str, str]:
    if settings.key_variable is None:
        return {}
    token = os.environ.get(settings.key_variable, "").strip()
    if not token:
        raise InvalidRequest(f"the environment of the tools has no {settings.key_variable}")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidRequest(f"what {settings.key_variable} holds is no token")
    return {"Authorization": f"Bearer {token}"}


class _Bounded(httpx2.AsyncBaseTransport):
    """Sends requests, and reads no more of an answer than it may have."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._transport = httpx2.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the answer, whose body is bounded."""
        response = await self._transport.handle_async_request(request)
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            await response.aclose()
            raise httpx2.DecodingError("the server packs its answer, which was not asked for")
        if response.status_code in (401, 403):
            told = "MCP server %s does not let us in (status %d): see `key_variable`"
            log.warning(told, self._name, response.status_code)
        kind = response.headers.get("content-type", "").lower()
        most = MAX_STREAM if kind.startswith("text/event-stream") else MAX_BODY
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _BoundedStream(response.stream, most)
        return response

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, most: int) -> None:
        self._stream = stream
        self._left = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            self._left -= len(part)
            if self._left < 0:
                raise httpx2.ReadError("the server sends more than it may")
            yield part

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()
