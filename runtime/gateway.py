"""The gateway: HTTP, server-sent events, websocket and documents on one port (Starlette on uvicorn)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from socket import AF_INET, AF_INET6, IPPROTO_TCP, TCP_NOTSENT_LOWAT, socket
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

import anyio
import uvicorn
from anyio.abc import TaskStatus
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from ..bus.bus import Bus
from ..schemas import OPERATIONS, AylluError, InvalidRequest, NotFound, Operation
from .answers import error_response
from .config import GatewayConfig
from .documents import documents
from .endpoints import Serving
from .gate import Door, Gate
from .health import HealthPages
from .http import failed, not_allowed, not_found, routes_of
from .metrics import UNKNOWN, Metrics, MetricsPage
from .openai.routes import openai_routes
from .own_operations import AllOperations, OwnOperations
from .own_routes import OwnRoutes
from .protocols import Patience, http_protocol, websocket_protocol
from .websocket import Connection

log = logging.getLogger(__name__)

UNSENT_BYTES = 64 << 10
"""How much the kernel takes in for a client that has no room for it. Without a bound it takes megabytes, and a client that does
not read costs as much as one that does until they are full."""
MEDIA_TYPES = {"yaml": "application/yaml", "html": "text/html; charset=utf-8"}


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
    bus: Bus,
    config: GatewayConfig,
    operations: Mapping[str, Operation],
    own: OwnOperations,
    metrics: Metrics,
) -> Door:
    """Return the ASGI application of the gateway."""
    gate = Gate(config)
    serving = Serving(bus, AllOperations(operations, own), config, metrics, gate)
    metrics_page = MetricsPage(bus, metrics).page

    async def websocket(connection: WebSocket) -> None:
        try:
            caller = gate.caller_of(connection.scope)
        except AylluError as error:
            metrics.refused(UNKNOWN, error.code)
            await connection.send_denial_response(error_response(error))
            return
        with metrics.websockets.track_inprogress():
            await Connection(connection, serving, own, caller=caller).run()

    async def metrics_for_callers(request: Request) -> Response:
        try:
            gate.caller_of(request.scope)
        except AylluError as error:
            return error_response(error)
        return await metrics_page(request)

    async def nothing_there(request: Request, error: Exception) -> Response:
        metrics.refused(UNKNOWN, NotFound.code)
        return await not_found(request, error)

    app = Starlette(
        routes=[
            *openai_routes(
                serving
            ),  # First: routes are tried one after the other, and of ours there are many.
            *routes_of(serving, operations),
            *DocumentPages(operations).routes(),
            *HealthPages(bus).routes(),
            Route("/metrics", metrics_for_callers),
            WebSocketRoute("/ws", websocket),
        ],
        exception_handlers={404: nothing_there, 405: not_allowed, Exception: failed},
    )
    app.router.default = OwnRoutes(serving, own, app.router.default)
    return Door(app, config, metrics)


def check_certificate(config: GatewayConfig) -> None:
    """Refuse a certificate that cannot be used.

    Raises:
        InvalidRequest: the files are not there, cannot be read, or do not fit each other.
    """
    if config.certfile is not None:
        try:
            SSLContext(PROTOCOL_TLS_SERVER).load_cert_chain(config.certfile, config.keyfile)
        except OSError as error:  # Which SSLError is, too.
            raise InvalidRequest(
                f"gateway.certfile and gateway.keyfile cannot be used: {error}"
            ) from error


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

    Raises:
        InvalidRequest: the certificate cannot be used.
    """
    check_certificate(config)
    if listener.family in (AF_INET, AF_INET6):
        listener.setsockopt(
            IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_BYTES
        )  # Its connections inherit it.
    metrics = Metrics(operations)
    patience = Patience(config, metrics.dropped.inc, partial(metrics.refused, UNKNOWN))
    options: dict[str, Any] = {
        "http": http_protocol(patience),
        "ws": websocket_protocol(patience),
        "ws_max_size": config.max_message_bytes,
        "ws_ping_interval": config.ping_interval,
        "ws_ping_timeout": config.ping_interval,
        "ssl_certfile": config.certfile,
        "ssl_keyfile": config.keyfile,
        # Else whoever connects from this machine could choose the address that limits are counted by.
        "proxy_headers": False,
        # Off: a small compressed frame may unpack to a huge one, and tokens are too short to gain from it.
        "ws_per_message_deflate": False,
        "lifespan": "off",
        "log_config": None,
        "log_level": "warning",
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": max(1, round(config.shutdown_grace)),
    }
    own = OwnOperations(bus, operations)
    server = _Server(uvicorn.Config(build_app(bus, config, operations, own, metrics), **options))
    metrics.watch_connections(lambda: len(server.server_state.connections))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_run, server, listener)
        try:
            await server.accepting.wait()
            task_status.started()
            await own.run()
        finally:
            server.should_exit = True


async def _run(server: uvicorn.Server, listener: socket) -> None:
    with anyio.CancelScope(shield=True):
        await server.serve(sockets=[listener])
