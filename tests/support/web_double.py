"""Doubles of servers on the web that tools ask: real HTTP servers on real sockets, which answer as tests tell them to."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

LARGEST = 1 << 20
BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


@dataclass
class Asked:
    """A request that came; the names of its headers are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


Act = Callable[[Asked, SocketStream], Awaitable[None]]
"""Answers a request; the connection is closed when it returns."""


def reply(body: object = b"", status: int = 200, headers: Mapping[str, str] | None = None) -> Act:
    """Answer with JSON, or with bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {
        "Content-Length": str(len(data)),
        "Content-Type": "application/json",
        **(headers or {}),
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return raw(f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode() + data)


def raw(data: bytes) -> Act:
    """Answer with these bytes, whatever they are."""

    async def act(asked: Asked, stream: SocketStream) -> None:
        await stream.send(data)

    return act


async def endless(asked: Asked, stream: SocketStream) -> None:
    """Answer with a body that does not end."""
    await stream.send(b"HTTP/1.1 200 OK\r\n\r\n[")
    while True:
        await stream.send(b"1," * 50_000)


async def stalling(asked: Asked, stream: SocketStream) -> None:
    """Answer with the beginning of a body, and then with nothing until the client hangs up."""
    await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    await stream.receive()


async def dripping(asked: Asked, stream: SocketStream) -> None:
    """Answer with a body that comes byte by byte, without an end, as fast as it goes."""
    await stream.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await stream.send(b" ")
        await anyio.sleep(0.01)


@dataclass
class WebDouble:
    """A server, what it does for the requests that come (the last is repeated), and what it was asked."""

    acts: list[Act]
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    gone: anyio.Event = field(default_factory=anyio.Event)

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    async def serve(self, stream: SocketStream) -> None:
        async with stream:
            try:
                asked = await _read(BufferedByteReceiveStream(stream))
                act = self.acts[min(len(self.asked), len(self.acts) - 1)]
                self.asked.append(asked)
                await act(asked, stream)
            except (*BROKEN, anyio.IncompleteRead):
                self.gone.set()


async def _read(received: BufferedByteReceiveStream) -> Asked:
    head = (await received.receive_until(b"\r\n\r\n", LARGEST)).decode()
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    length = int(headers.get("content-length", "0"))
    body = json.loads(await received.receive_exactly(length)) if length else None
    parts = urlsplit(target)
    query = {name: value for name, [value] in parse_qs(parts.query).items()}
    return Asked(method, parts.path, query, headers, body)


@asynccontextmanager
async def web_double(*acts: Act, path: str = "") -> AsyncIterator[WebDouble]:
    """Run a server; nothing of it is left at the end."""
    double = WebDouble(list(acts))
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        double.url = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}{path}"
        with anyio.fail_after(30):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, double.serve)
                yield double
                tasks.cancel_scope.cancel()


@asynccontextmanager
async def closed_port() -> AsyncIterator[str]:
    """Return an address where nobody listens."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(SocketAttribute.local_port)
    with suppress(BROKEN[0]):
        yield f"http://127.0.0.1:{port}"
