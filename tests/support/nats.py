"""Real nats-servers for tests."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from anyio.from_thread import start_blocking_portal

from ayllu.bus.server import Server, embedded_server


@contextmanager
def shared_server() -> Iterator[str]:
    """Run one server for many tests, which keep apart by their names; yields its address."""
    with (
        tempfile.TemporaryDirectory(prefix="ayllu-") as folder,
        # A loop of its own: each test has another one.
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(embedded_server(Path(folder) / "nats")) as server,
    ):
        yield server.url


async def page(server: Server, name: str) -> dict[str, Any]:
    """Return a monitoring page of a server."""

    def load() -> dict[str, Any]:
        with urllib.request.urlopen(f"{server.monitoring}/{name}", timeout=5) as reply:
            found: dict[str, Any] = json.load(reply)
            return found

    return await anyio.to_thread.run_sync(load)


async def kill(server: Server) -> None:
    """Kill a server with -9, and wait until it is gone."""
    os.kill(server.process.pid, signal.SIGKILL)
    with anyio.fail_after(5):
        await server.process.wait()


@asynccontextmanager
async def killed_and_started(data_dir: Path, server: Server) -> AsyncIterator[Server]:
    """Kill a server with -9 and start one on the same data and port."""
    await kill(server)
    async with embedded_server(data_dir, port=server.port) as again:
        yield again
