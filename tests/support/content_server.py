"""A server of content that may mean ill: real, on loopback; it answers byte for byte what a test tells it to."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio
import anyio.abc
from anyio.streams.tls import TLSListener

OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


class Server:
    """Answers each path with what stands there, and keeps what it was asked.

    A path that begins with ``/stall`` is left open after its answer, and one with ``/endless`` repeats it until the client
    hangs up.
    """

    def __init__(self, answers: Mapping[str, bytes]) -> None:
        self.answers = answers
        self.asked: list[bytes] = []
        self.connections = 0
        self.gone = anyio.Event()
        self.port = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def handle(self, stream: anyio.abc.ByteStream) -> None:
        self.connections += 1
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive()
            self.asked.append(head)
            path = head.split(b" ", 2)[1].decode()
            try:
                await stream.send(self.answers[path].replace(b"HOST", self.host.encode()))
                while path.startswith("/endless"):
                    await stream.send(self.answers[path])
                if path.startswith("/stall"):
                    await stream.receive()  # Until the client hangs up.
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                self.gone.set()


@asynccontextmanager
async def serving(
    answers: Mapping[str, bytes], context: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    server = Server(answers)
    tcp = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server.port = tcp.extra(anyio.abc.SocketAttribute.local_port)
    listener = TLSListener(tcp, context, standard_compatible=False) if context else tcp
    with anyio.fail_after(20):
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, server.handle)
            yield server
            tasks.cancel_scope.cancel()


def redirect(target: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode()
