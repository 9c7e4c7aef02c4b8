"""Buses of both kinds, each with a storage of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ayllu.bus import connect, local_bus
from ayllu.bus.bus import Bus
from ayllu.bus.server import embedded_server


@asynccontextmanager
async def buses(kind: str, folder: Path) -> AsyncIterator[Bus]:
    """Open a bus within this process (``local``), or over a nats-server of its own (``nats``)."""
    if kind == "local":
        async with local_bus() as bus:
            yield bus
        return
    async with embedded_server(folder / "nats") as server, connect(server.url) as bus:
        yield bus
