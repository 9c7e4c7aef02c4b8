"""``ayllu up``: one tree of processes on one machine. The supervisor holds the listening socket and starts the rest:

    nats-server   the bus, on loopback, its data under the data directory
    gateway       HTTP and websocket clients' way in
    inference     the models
    memory        banks of documents, and the embedding models
    agents        agents and their turns, the triggers that start them, conversations of groups
    training      datasets, and fine-tuning jobs, each in a child process of it
    data          reward models, generated data, loops of generation and training
    own           own actors, where there are some (--import)

What crashes is started again; the socket and the bus's port stay, so that clients find everything where it was. All of
them end with the supervisor, however it ends.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6, SO_REUSEADDR, SOCK_STREAM, SOL_SOCKET, getaddrinfo, socket
from typing import Any

import anyio
from anyio.abc import ByteReceiveStream, TaskStatus
from anyio.streams.text import TextReceiveStream

from ..actors.supervision import Start, supervise
from ..bus.processes import stop_process
from ..bus.server import Server, embedded_server, write_private
from ..schemas import BusError, InvalidRequest, PermissionDenied, Unavailable
from .config import GatewayConfig
from .worker import READY_LINE, announce

log = logging.getLogger(__name__)

EXIT_MISCONFIGURED = 2
"""The exit status of a worker that no restart can help."""
STOP_SECONDS = 15.0
"""How long a child may take to end after SIGTERM, before it is killed."""
DRAIN_SECONDS = 5.0
"""How long running calls of models may go on then; those that came by the gateway end with it before."""

HEALTH_SECONDS, HEALTH_FAILURES = 5.0, 3
"""How often the nats-server's health is asked for, and after how many failures in a row it is started again."""

WORKERS = {
    "inference": ("inference",),
    "memory": ("memory",),
    "agents": ("agents", "triggers", "groups"),
    "tools": ("tools", "shields"),
    "training": ("datasets", "training"),
    "data": ("rewards", "synthetic_data", "improvement"),
    "gateway": ("gateway",),
}
"""The worker processes of ``ayllu up``, and the kinds of actors that each runs."""
OWN_WORKER = "own"
"""The process of own actors."""

BUS_URL_VARIABLE = "AYLLU_BUS_URL"
PARENT_VARIABLE = "AYLLU_PARENT"
BUS_URL_FILE = "bus.url"
"""The file in the data directory that tells programs on this machine where the bus is; it has the credentials."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What ``ayllu up`` was asked for.

    Attributes:
        host: the address to listen on; other than on loopback, clients need tokens.
        port: the port; 0 takes a free one.
        data_dir: where everything durable lives.
        config: the configuration file.
        bus_url: an external bus; by default a nats-server is started.
        gateway: what the configuration says about the gateway.
        imports: the modules of own actors, which get a process of their own.
    """

    host: str
    port: int
    data_dir: Path
    config: Path | None
    bus_url: str | None = None
    gateway: GatewayConfig = field(default_factory=GatewayConfig)
    imports: Sequence[str] = ()


def check_loopback(host: str) -> None:
    """Refuse an address where clients must not come without tokens.

    Raises:
        PermissionDenied: it is not on loopback.
    """
    if not ip_address(host).is_loopback:
        raise PermissionDenied(
            f"{host} can be reached from other machines, and anybody there could call: configure "
            "gateway.tokens (see `ayllu token --help`), or use a loopback address such as 127.0.0.1"
        )


def open_listener(host: str, port: int, *, authenticated: bool = False) -> socket:
    """Return a listening socket.

    Args:
        host: the address.
        port: the port; 0 takes a free one.
        authenticated: whether clients need a token; without, only loopback is listened on.

    Raises:
        PermissionDenied: the address is not on loopback, and clients need no token.
        InvalidRequest: the address cannot be used; the message says why.
    """
    try:
        family, _, _, _, address = getaddrinfo(host, port, type=SOCK_STREAM)[0]
    except OSError as error:
        raise InvalidRequest(f"{host} is not an address of this machine: {error}") from error
    if family not in (AF_INET, AF_INET6):
        raise InvalidRequest(f"{host} is not an internet address")
    if not authenticated:
        check_loopback(str(address[0]))
    listener = socket(family, SOCK_STREAM)
    listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise InvalidRequest(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
        ) from error
    listener.listen(1024)
    return listener


def url_of(listener: socket, *, tls: bool = False) -> str:
    """Return the HTTP address of a listening socket."""
    host, port = listener.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class Tree:
    """The processes of one ``ayllu up``."""

    def __init__(self, options: UpOptions, listener: socket) -> None:
        self._options = options
        self._listener = listener
        self._bus_url = options.bus_url or ""
        self._bus_port = 0

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; started when clients can be served. Workers end before the bus does."""
        bus = anyio.CancelScope(shield=True)

        async def run_bus(*, task_status: TaskStatus[None]) -> None:
            with bus:
                await supervise("nats-server", self._run_bus, task_status=task_status)

        async with anyio.create_task_group() as tasks:
            try:
                if not self._bus_url:
                    await tasks.start(run_bus)
                await self._run_workers(task_status)
            finally:
                bus.cancel()

    async def _run_workers(self, task_status: TaskStatus[None]) -> None:
        async with anyio.create_task_group() as workers:
            async with anyio.create_task_group() as starting:
                for name, kinds in WORKERS.items():
                    starting.start_soon(workers.start, supervise, name, self._worker(name, kinds))
                if imports := self._options.imports:
                    own = self._worker(OWN_WORKER, (), imports)
                    starting.start_soon(workers.start, supervise, OWN_WORKER, own)
            task_status.started()

    async def _run_bus(self, *, task_status: TaskStatus[Any]) -> None:
        data = self._options.data_dir / "nats"
        async with embedded_server(data, port=self._bus_port) as server:
            self._bus_url, self._bus_port = server.url, server.port
            bus_url_file = self._options.data_dir / BUS_URL_FILE
            await anyio.to_thread.run_sync(write_private, bus_url_file, server.url)
            task_status.started()
            await _watch(server)

    def _worker(self, name: str, kinds: Sequence[str], imports: Sequence[str] = ()) -> Start:
        async def start(*, task_status: TaskStatus[Any]) -> None:
            arguments = ["worker", *kinds, "--data-dir", str(self._options.data_dir)]
            for module in imports:
                arguments += ["--import", module]
            arguments += ["--drain-seconds", str(DRAIN_SECONDS)]
            if self._options.config is not None:
                arguments += ["--config", str(self._options.config)]
            fds: list[int] = []
            if "gateway" in kinds:
                fds = [self._listener.fileno()]
                arguments += ["--listen-fd", str(fds[0])]
            await run_child(name, arguments, self._bus_url, fds, task_status=task_status)

        return start


async def _watch(server: Server) -> None:
    """Watch the nats-server until it ends, or hangs.

    Raises:
        BusError: it did.
    """
    failures = 0
    while failures < HEALTH_FAILURES:
        with anyio.move_on_after(HEALTH_SECONDS):
            await server.process.wait()
            raise BusError(f"nats-server ended with status {server.process.returncode}")
        failures = 0 if await server.healthy() else failures + 1
    raise BusError(f"nats-server was not healthy {failures} times")


async def run_child(
    name: str,
    arguments: Sequence[str],
    bus_url: str,
    pass_fds: Sequence[int] = (),
    *,
    task_status: TaskStatus[None],
) -> None:
    """Run ``ayllu`` as a child until it ends or this is cancelled; started when it says that it is ready.

    Raises:
        InvalidRequest: the child says that it is configured wrongly.
        Unavailable: it ended.
    """
    # The bus's address has its credentials: it goes by the environment, which others cannot read.
    environment = {
        **os.environ,
        BUS_URL_VARIABLE: bus_url,
        PARENT_VARIABLE: str(os.getpid()),
    }
    process = await anyio.open_process(
        [sys.executable, "-m", "ayllu.runtime.cli", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None,
        env=environment,
        # A terminal's Ctrl-C is for the supervisor, which then ends the others in order.
        start_new_session=True,
        pass_fds=pass_fds,
    )
    try:
        assert process.stdout is not None
        if await _says_ready(process.stdout):
            task_status.started()
        status = await process.wait()
    finally:
        await stop_process(process, patience=STOP_SECONDS)
    if status == EXIT_MISCONFIGURED:
        raise InvalidRequest(f"{name} cannot be started as it is configured")
    raise Unavailable(f"{name} ended with status {status}; what it said stands above")


async def _says_ready(stdout: ByteReceiveStream) -> bool:
    said = ""
    async for text in TextReceiveStream(stdout, errors="replace"):
        said += text
        if READY_LINE in said.splitlines():
            return True
    return False


async def up(options: UpOptions) -> None:
    """Run a deployment on this machine until SIGTERM or SIGINT; prints ``ready http://HOST:PORT`` when it can serve.

    Raises:
        AylluError: it cannot be started.
    """
    authenticated = bool(options.gateway.tokens)
    listener = open_listener(options.host, options.port, authenticated=authenticated)
    with listener:
        options.data_dir.mkdir(parents=True, exist_ok=True)
        async with anyio.create_task_group() as tasks:
            with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:

                async def stop_on_signal() -> None:
                    async for number in signals:
                        log.info("stopping at %s", signal.Signals(number).name)
                        tasks.cancel_scope.cancel()

                tasks.start_soon(stop_on_signal)
                await tasks.start(Tree(options, listener).run)
                announce(f"ready {url_of(listener, tls=options.gateway.tls)}")
                await anyio.sleep_forever()
