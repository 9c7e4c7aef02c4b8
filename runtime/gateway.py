"""The gateway: HTTP, server-sent events, websocket and documents on one port (Starlette on uvicorn)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from socket import socket
from typing import Any

import anyio
import uvicorn
from anyio.abc import TaskStatus
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from ..bus.bus import Bus
from ..schemas import OPERATIONS, NotFound, Operation
from .config import GatewayConfig
from .documents import documents
from .health import HealthPages
from .http import failed, not_allowed, not_found, routes_of
from .metrics import UNKNOWN, Metrics, MetricsPage
from .websocket import Connection

log = logging.getLogger(__name__)

MEDIA_TYPES = {"yaml": "application/yaml", "html": "text/html; charset=utf-8"}


def websocket_protocol(
    write_timeout: float, on_drop: Callable[[], None]
) -> type[WebSocketsSansIOProtocol]:
    """Return uvicorn's websocket protocol, made to drop a peer that takes nothing for ``write_timeout`` seconds.

    Neither uvicorn nor websockets notices such a peer by itself: pings wait behind the data that it does not read.
    """

    class Protocol(WebSocketsSansIOProtocol):
        _drop: asyncio.TimerHandle | None = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch()

        def _watch(self) -> None:
            waiting = self.transport.get_write_buffer_size()
            self._drop = self.loop.call_later(write_timeout, self._drop_unless_read, waiting)

        def _drop_unless_read(self, waited: int) -> None:
            # A peer that takes little, but steadily, is no dead one.
            if self.transport.get_write_buffer_size() < waited:
                self._watch()
            else:
                on_drop()
                self.transport.abort()

        def resume_writing(self) -> None:
            self._keep()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._keep()
            super().connection_lost(exc)

        def _keep(self) -> None:
            if self._drop is not None:
                self._drop.cancel()
                self._drop = None

    return Protocol


class DocumentPages:
    """Serves the documents of the contract; they are written when first asked for."""

    def __init__(self, operations: Mapping[str, Operation]) -> None:
        self._operations = operations

    @cached_property
    def _documents(self) -> dict[str, str]:
        return documents(self._operations)

    async def page(self, request: Request) -> Response:
        """Return a document."""
        name = request.url.path.strip("/")
        text = await anyio.to_thread.run_sync(lambda: self._documents[name])
        return Response(text, media_type=MEDIA_TYPES[name.rpartition(".")[2]])

    def routes(self) -> list[BaseRoute]:
        """Return the routes of the documents; the root leads to the readable one."""
        names = ("openapi.yaml", "openapi.html", "asyncapi.yaml")
        pages: list[BaseRoute] = [Route(f"/{name}", self.page) for name in names]
        return [*pages, Route("/", self.root)]

    async def root(self, _: Request) -> Response:
        """Lead to the readable document."""
        return RedirectResponse("/openapi.html")


def build_app(
    bus: Bus, config: GatewayConfig, operations: Mapping[str, Operation], metrics: Metrics
) -> Starlette:
    """Return the ASGI application of the gateway."""

    async def websocket(connection: WebSocket) -> None:
        with metrics.websockets.track_inprogress():
            await Connection(connection, bus, operations, config, metrics).run()

    async def nothing_there(request: Request, error: Exception) -> Response:
        metrics.refused(UNKNOWN, NotFound.code)
        return await not_found(request, error)

    return Starlette(
        routes=[
            *routes_of(bus, operations, config, metrics),
            *DocumentPages(operations).routes(),
            *HealthPages(bus).routes(),
            Route("/metrics", MetricsPage(bus, metrics).page),
            WebSocketRoute("/ws", websocket),
        ],
        exception_handlers={404: nothing_there, 405: not_allowed, Exception: failed},
    )


class _Server(uvicorn.Server):
    """A uvicorn server that says when it accepts, and leaves signals to whoever runs it."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = anyio.Event()

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Capture none."""
        return nullcontext()

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Start to accept."""
        await super().startup(sockets)
        self.accepting.set()


async def serve_gateway(
    bus: Bus,
    config: GatewayConfig,
    listener: socket,
    *,
    operations: Mapping[str, Operation] = OPERATIONS,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve HTTP and websocket clients on a listening socket until cancelled; started means that it accepts.

    When cancelled, running calls may go on for ``config.shutdown_grace`` seconds; then connections are closed with the
    code 1012 (service restart).
    """
    metrics = Metrics(operations)
    options: dict[str, Any] = {
        "ws": websocket_protocol(config.write_timeout, metrics.dropped.inc),
        "ws_max_size": config.max_message_bytes,
        # Off: a small compressed frame may unpack to a huge one, and tokens are too short to gain from it.
        "ws_per_message_deflate": False,
        "lifespan": "off",
        "log_config": None,
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": max(1, round(config.shutdown_grace)),
    }
    server = _Server(uvicorn.Config(build_app(bus, config, operations, metrics), **options))
    metrics.watch_connections(lambda: len(server.server_state.connections))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_run, server, listener)
        try:
            await server.accepting.wait()
            task_status.started()
            await anyio.sleep_forever()
        finally:
            server.should_exit = True


async def _run(server: uvicorn.Server, listener: socket) -> None:
    with anyio.CancelScope(shield=True):
        await server.serve(sockets=[listener])
