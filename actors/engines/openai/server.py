"""A server that speaks OpenAI's protocol, and the connections to it."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator

import httpcore2

from ....schemas import AylluError, EngineError
from .errors import Quote, retry_after_of, status_error

log = logging.getLogger(__name__)

MAX_ERROR_BYTES = 1 << 16
MAX_BODY_BYTES = 1 << 22
BROKEN = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException)
"""What httpcore2 raises when a server is away, breaks off, or does not speak HTTP."""


class Server:
    """Sends requests to one server, over connections that stay open; a request has a connection to itself.

    Its address is for the log, its key for nobody.

    Args:
        url: of the API, for example ``http://127.0.0.1:8000/v1``.
        key: what it lets in by.
        connections: the most of them.
        connect_seconds: how long a connection may take.

    Attributes:
        url: of the API.
        quote: quotes what it says.
    """

    def __init__(
        self, url: str, *, key: str | None, connections: int, connect_seconds: float
    ) -> None:
        self.url = url.rstrip("/")
        parsed = httpcore2.URL(self.url)
        host = parsed.host.decode()
        authority = _authority(parsed)
        # A host without a dot or colon may be an ordinary word.
        hidden = [key or "", self.url, authority.decode(), host if {".", ":"} & set(host) else ""]
        self.quote = Quote(hidden)
        self._secure = parsed.scheme == b"https"
        self._connections = connections
        self._timeout = {"connect": connect_seconds}
        self._pool: httpcore2.AsyncConnectionPool | None = None
        self._headers = [
            (b"Host", authority),
            (b"User-Agent", b"ayllu"),
            (b"Accept-Encoding", b"identity"),
        ]
        if key is not None:
            self._headers.append((b"Authorization", b"Bearer " + key.encode()))

    def open(self) -> None:
        """Be ready for requests; nothing is sent."""
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context() if self._secure else None,
            max_connections=self._connections,
        )

    async def aclose(self) -> None:
        """Close all connections, also those in use."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.aclose()

    async def post(self, path: str, body: bytes) -> httpcore2.Response:
        """Send a request, and return the response when its headers have come; whoever gets it closes it.

        Raises:
            Exception: one of `BROKEN`.
        """
        headers = [(b"Content-Type", b"application/json"), (b"Accept", b"text/event-stream")]
        headers.append((b"Content-Length", b"%d" % len(body)))
        return await self._send("POST", path, headers, body)

    async def get(self, path: str) -> bytes:
        """Return what stands at a path.

        Raises:
            AylluError: the server does not give it.
            Exception: one of `BROKEN`.
        """
        response = await self._send("GET", path, [(b"Accept", b"application/json")])
        try:
            if response.status != 200:
                raise await self.refusal(response)
            return await _body(response, MAX_BODY_BYTES)
        finally:
            await response.aclose()

    async def _send(
        self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes = b""
    ) -> httpcore2.Response:
        if self._pool is None:
            raise httpcore2.NetworkError("the connections are closed")
        request = httpcore2.Request(
            method,
            self.url + path,
            headers=[*self._headers, *headers],
            content=body,
            extensions={"timeout": self._timeout},
        )
        return await self._pool.handle_async_request(request)

    async def refusal(self, response: httpcore2.Response) -> AylluError:
        """Return what a response means whose status is not 200; it is read, but not closed."""
        body = await _body(response, MAX_ERROR_BYTES)
        retry_after = retry_after_of(header(response, b"retry-after"))
        return status_error(response.status, body, self.quote, retry_after)


def header(response: httpcore2.Response, name: bytes) -> str:
    """Return the value of a header, empty where there is none; its name is in lower case."""
    for known, value in response.headers:
        if known.lower() == name:
            return value.decode("latin-1")
    return ""


def check_is_stream(response: httpcore2.Response) -> None:
    """Check that a response is a stream of events as they are.

    Raises:
        EngineError: it is something else.
    """
    media_type = header(response, b"content-type").partition(";")[0].strip().lower()
    packed = header(response, b"content-encoding").strip().lower()
    if media_type != "text/event-stream" or packed not in ("", "identity"):
        found = f"{media_type[:50] or 'something'} {packed[:50]}".strip()
        raise EngineError(f"the server of the model answers with {found}, not with events")


def stream_of(response: httpcore2.Response) -> AsyncGenerator[bytes, None]:
    """Return the bytes of a response as they come; close it when they are not read to their end."""
    stream: AsyncGenerator[bytes, None] = aiter(response.stream)  # type: ignore[arg-type]
    return stream


async def _body(response: httpcore2.Response, most: int) -> bytes:
    found = bytearray()
    stream = stream_of(response)
    try:
        async for part in stream:
            found += part
            if len(found) >= most:
                break
    finally:
        await stream.aclose()
    return bytes(found[:most])


def _authority(url: httpcore2.URL) -> bytes:
    """Return host and port as they stand in ``Host``."""
    host = b"[" + url.host + b"]" if b":" in url.host else url.host
    default = {b"http": 80, b"https": 443}[url.scheme]
    return host if url.port in (None, default) else b"%b:%d" % (host, url.port)
