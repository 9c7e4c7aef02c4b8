"""A double of a server that speaks OpenAI's protocol: a real HTTP server on a real socket that does what a test says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from ayllu.actors.engines.openai.engine import OpenAIEngine
from ayllu.actors.engines.settings import OpenAISettings

MODEL = "double"
LARGEST = 1 << 20
SECONDS = 30.0
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
BROKEN = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


@dataclass
class Asked:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


class Connection:
    """A client's connection, while one of its requests is answered."""

    def __init__(self, stream: SocketStream, double: Double) -> None:
        self.stream = stream
        self.double = double

    async def send(self, data: bytes) -> None:
        await self.stream.send(data)

    async def events(self, *data: object) -> None:
        """Send events, each in a chunk of HTTP of its own."""
        for one in data:
            await self.send(chunked(b"data: " + encoded(one) + b"\n\n"))

    async def until_closed(self) -> None:
        """Wait until the client closes the connection."""
        self.double.hanging.set()
        with suppress(*BROKEN):
            while True:
                await self.stream.receive()
        self.double.closed.set()


Act = Callable[[Connection], Awaitable[None]]
"""Answers a request; the connection stays open when it returns, unless it closed it."""


@dataclass
class Double:
    """What the server does, and what it was asked.

    Attributes:
        acts: what it does for the requests that come; the last one is repeated.
        models: what it says to ``GET /models``: names, or the act that answers.
        url: of its API.
        asked: the requests but for ``/models``.
        connections: how many were made.
        hanging: set when an act waits for the client to close the connection.
        closed: set when the client did.
    """

    acts: list[Act]
    models: Sequence[str] | Act = (MODEL,)
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    hanging: anyio.Event = field(default_factory=anyio.Event)
    closed: anyio.Event = field(default_factory=anyio.Event)

    def engine(self, **settings: Any) -> OpenAIEngine:
        """Return an engine in front of it; ``slots`` and ``key`` are the engine's own, the rest its settings."""
        own = {name: settings.pop(name) for name in ("slots", "key") if name in settings}
        return OpenAIEngine(
            self.url, settings.pop("model", MODEL), settings=OpenAISettings(**settings), **own
        )

    async def serve(self, stream: SocketStream) -> None:
        self.connections += 1
        received = BufferedByteReceiveStream(stream)
        async with stream:
            with suppress(*BROKEN, anyio.IncompleteRead):
                while True:
                    await self._answer(await _read(received), Connection(stream, self))

    async def _answer(self, asked: Asked, connection: Connection) -> None:
        if asked.path.endswith("/models"):
            act = self.models
            if not callable(act):
                act = answering(200, {"data": [{"id": name} for name in act]})
        else:
            act = self.acts[min(len(self.asked), len(self.acts) - 1)]
            self.asked.append(asked)
        await act(connection)


async def _read(received: BufferedByteReceiveStream) -> Asked:
    head = (await received.receive_until(b"\r\n\r\n", LARGEST)).decode()
    first, *lines = head.split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    length = int(headers.get("content-length", "0"))
    body = json.loads(await received.receive_exactly(length)) if length else {}
    return Asked(method, path, headers, body)


@asynccontextmanager
async def running_double(*acts: Act, **values: Any) -> AsyncIterator[Double]:
    """Run a double until the end of the block, which has to come soon."""
    double = Double(list(acts), **values)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        port = listener.extra(SocketAttribute.local_port)
        double.url = f"http://127.0.0.1:{port}/v1"
        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, double.serve)
                yield double
                tasks.cancel_scope.cancel()


def encoded(data: object) -> bytes:
    return data if isinstance(data, bytes) else json.dumps(data).encode()


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def text(content: str) -> dict[str, Any]:
    """Return a chunk of a chat."""
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": None}]}


def finished(reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


ANSWER = (text("Hel"), text("lo"), finished(), usage(7, 2), b"[DONE]")


def streaming(*data: object) -> Act:
    """Answer with events."""

    async def act(connection: Connection) -> None:
        await connection.send(EVENTS)
        await connection.events(*data)
        await connection.send(END)

    return act


def answering(status: int, body: object, headers: str = "") -> Act:
    """Answer with a status and a body."""

    async def act(connection: Connection) -> None:
        content = encoded(body)
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        await connection.send(f"{head}{headers}\r\n".encode() + content)

    return act


def hanging(*before: object, headers: bool = True) -> Act:
    """Send some events, or only headers, or nothing at all; and then nothing for ever."""

    async def act(connection: Connection) -> None:
        if headers:
            await connection.send(EVENTS)
        await connection.events(*before)
        await connection.until_closed()

    return act


def dropping(*before: object, headers: bool = True, end: bytes = b"") -> Act:
    """Send some events, and close the connection, perhaps with the end of the response before."""

    async def act(connection: Connection) -> None:
        if headers:
            await connection.send(EVENTS)
        await connection.events(*before)
        await connection.send(end)
        await connection.stream.aclose()

    return act


def sending(data: bytes) -> Act:
    """Send bytes as they are, and close the connection."""

    async def act(connection: Connection) -> None:
        await connection.send(data)
        await connection.stream.aclose()

    return act
