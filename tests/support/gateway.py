"""A gateway on a real socket, in the test's own process, over the bus within the process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from socket import socket

import anyio
import httpx2

from ayllu.bus.bus import Bus, local_bus
from ayllu.bus.service import serve
from ayllu.client import Stack, connect
from ayllu.runtime.config import GatewayConfig
from ayllu.runtime.gateway import serve_gateway
from ayllu.runtime.supervisor import open_listener, url_of
from ayllu.schemas import PROTOCOLS, Operation, table_of

from .shapes import Shapes, ShapesActor

OPERATIONS: Mapping[str, Operation] = table_of([*PROTOCOLS, Shapes])


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that runs.

    Attributes:
        url: its HTTP address.
        bus: the bus behind it.
        actor: the tests' own actor, which is served there.
        http: an HTTP client.
        stack: a websocket client.
        shapes: the tests' own API over the websocket.
    """

    url: str
    bus: Bus
    actor: ShapesActor
    http: httpx2.AsyncClient
    stack: Stack
    shapes: Shapes

    @property
    def websocket_url(self) -> str:
        """The address of the websocket."""
        return self.url.replace("http", "ws", 1) + "/ws"


@asynccontextmanager
async def running_gateway(
    *actors: object,
    config: GatewayConfig = GatewayConfig(),
    seconds: float = 30,
    token: str | None = None,
) -> AsyncIterator[Running]:
    """Run a gateway with clients; in the end no call is left on the bus."""
    actor = ShapesActor()
    listener: socket = open_listener("127.0.0.1", 0)
    url = url_of(listener, tls=config.tls)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    with listener, anyio.fail_after(seconds):
        async with local_bus() as bus, anyio.create_task_group() as tasks:
            await tasks.start(serve, bus, actor, *actors)
            await tasks.start(_serve, bus, config, listener)
            async with (
                httpx2.AsyncClient(base_url=url, timeout=20, headers=headers) as http,
                connect(url, token=token) as stack,
            ):
                yield Running(url, bus, actor, http, stack, stack.api(Shapes))
            with anyio.fail_after(5):
                while bus.calls.open_count:  # The last cancels are on their way.
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        assert actor.running == 0


async def _serve(
    bus: Bus,
    config: GatewayConfig,
    listener: socket,
    *,
    task_status: anyio.abc.TaskStatus[None],
) -> None:
    await serve_gateway(bus, config, listener, operations=OPERATIONS, task_status=task_status)
