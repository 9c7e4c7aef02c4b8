"""A lock that many readers share, or one writer has; in the order of their coming."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio


class ReadWriteLock:
    """Many readers, or one writer. Nobody overtakes: a waiting writer holds up later readers, and the other way round.

    Waiting may be cancelled.
    """

    def __init__(self) -> None:
        self._gate = anyio.Lock(fast_acquire=True)
        self._readers = 0
        self._drained = anyio.Event()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Hold the lock together with other readers."""
        async with self._gate:
            self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            if not self._readers:
                self._drained.set()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Hold the lock alone."""
        async with self._gate:
            while self._readers:
                self._drained = anyio.Event()
                await self._drained.wait()
            yield
