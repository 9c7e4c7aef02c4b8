"""The bus: a transport, the calls on it, and what is stored on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from .calls import Calls, ClaimCheck, open_calls
from .claims import Claims
from .durable import Storage
from .local import LocalTransport
from .memory import MemoryStorage
from .nats import connect_nats
from .transport import Transport


@dataclass(frozen=True, slots=True)
class Bus:
    """What actors and clients stand on.

    Attributes:
        transport: moves messages, live.
        calls: requests and their streams of replies.
        storage: what survives: streams, work queues, keys and values, objects.
        claims: keeps payloads that are too large for a message.
    """

    transport: Transport
    calls: Calls
    storage: Storage
    claims: ClaimCheck | None = None


@asynccontextmanager
async def local_bus() -> AsyncIterator[Bus]:
    """Open a bus within this process: for tests and embedding. Nothing survives its end."""
    transport = LocalTransport()
    storage = MemoryStorage(transport)
    claims = Claims(storage, limit=transport.max_payload // 2)
    async with open_calls(transport, claims) as calls:
        yield Bus(transport, calls, storage, claims)


@asynccontextmanager
async def connect(url: str, *, name: str = "ayllu") -> AsyncIterator[Bus]:
    """Open a bus over NATS.

    Args:
        url: ``nats://[token@ or user:password@]host:port``, several separated by commas.
        name: how the connection is called in the server's lists.

    Raises:
        BusError: no server answers.
    """
    async with connect_nats(url, name=name) as transport:
        claims = Claims(transport.storage, limit=transport.max_payload // 2)
        async with open_calls(transport, claims) as calls:
            yield Bus(transport, calls, transport.storage, claims)
