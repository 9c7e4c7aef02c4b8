"""A wire between a client and a server that can be cut, from neither's side."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import ByteStream, SocketStream


@dataclass
class Wire:
    """Connections to a port that go on to another one.

    Attributes:
        url: where clients connect.
        count: how many connections there were.
    """

    url: str
    count: int = 0
    _scopes: set[anyio.CancelScope] = field(default_factory=set)

    def cut(self) -> None:
        """Break all connections that there are; later ones are taken."""
        for scope in list(self._scopes):
            scope.cancel()


@asynccontextmanager
async def wire_to(url: str) -> AsyncIterator[Wire]:
    """Run a wire to a server until the end of the block."""
    target = int(url.rpartition(":")[2])
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    wire = Wire(f"http://127.0.0.1:{port}")

    async def carry(near: SocketStream) -> None:
        wire.count += 1
        with anyio.CancelScope() as scope:
            wire._scopes.add(scope)
            try:
                async with near, await anyio.connect_tcp("127.0.0.1", target) as far:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(_pump, near, far, scope)
                        tasks.start_soon(_pump, far, near, scope)
            except OSError:
                return
            finally:
                wire._scopes.discard(scope)

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, carry)
        yield wire
        tasks.cancel_scope.cancel()


async def _pump(source: ByteStream, sink: ByteStream, scope: anyio.CancelScope) -> None:
    try:
        async for data in source:
            await sink.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    scope.cancel()
