"""One version of a registered model while it is loaded: supervised, announced when it is wanted, retired without losing a call."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio
from anyio.abc import TaskStatus

from ...bus.bus import Bus
from ...bus.kept import keeping
from ...bus.service import Drain, Service
from ...schemas import AylluError
from ..supervision import supervise
from .records import Version

log = logging.getLogger(__name__)

ActorOf = Callable[[Version], object]
"""Returns the actor of a loaded version, which tells the version's number."""
Loading = Callable[[], AbstractAsyncContextManager[ActorOf]]
"""Loads a version: inside of what it returns, its engine is ready."""


class ServedVersion:
    """A version with an engine of its own, in three steps: loaded, announced, retired.

    Args:
        bus: the bus.
        name: what requests call the model.
        version: what is served; its number may be told until it is announced.
        load: loads it; called again when its engine died.
        drain: how long its running calls may go on when the worker ends.
    """

    def __init__(
        self, bus: Bus, name: str, version: Version, load: Loading, drain: Drain | None = None
    ) -> None:
        self.name = name
        self.version = version
        self._bus = bus
        self._load = load
        self._drain = drain
        self._wanted = anyio.Event()
        self._announced = anyio.Event()
        self._over = anyio.Event()
        self._kept: anyio.Event | None = None
        self._service: Service | None = None
        self._scope = anyio.CancelScope()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep it loaded until it is retired or cancelled; started means loaded.

        Raises:
            AylluError: it cannot be loaded.
        """
        try:
            with self._scope:
                await supervise(f"model {self.name}", self._serve, task_status=task_status)
        finally:
            self._announced.set()  # Nobody waits for what will not come.

    async def _serve(self, *, task_status: TaskStatus[Any]) -> None:
        async with self._load() as actor_of:
            task_status.started()
            await self._wanted.wait()
            self._service = Service(self._bus, actor_of(self.version), self._drain)
            try:
                await self._service.run(task_status=_Sets(self._announced))
            finally:
                self._service = None
                if self._over.is_set():
                    self._scope.cancel()
            await anyio.sleep_forever()  # Not a crash: it was retired, and the scope ends it here.

    async def announce(self) -> None:
        """Let requests come; returns once they can."""
        self._wanted.set()
        await self._announced.wait()

    async def keep(self) -> None:
        """Let callers know, until it is retired, that it comes back whenever it is away."""
        kind = "reward" if self.version.served == "reward" else "language"
        self._kept = anyio.Event()
        try:
            if not self._over.is_set():
                async with keeping(self._bus, [self.name], kind):
                    await self._over.wait()
        except AylluError as error:
            log.warning("that the model %s is kept cannot be told: %s", self.name, error)
        finally:
            self._kept.set()

    async def retire(self, patience: float) -> None:
        """Take no new requests; those that run may go on for up to ``patience`` seconds, then it is unloaded.

        Returns once no new requests come.
        """
        self._over.set()
        if (service := self._service) is None:
            self.discard()
        else:
            service.retire(patience)
            await service.withdrawn.wait()
        if self._kept is not None:
            await self._kept.wait()

    def discard(self) -> None:
        """Unload it at once."""
        self._scope.cancel()


class _Sets(TaskStatus[Any]):
    def __init__(self, event: anyio.Event) -> None:
        self._event = event

    def started(self, value: object = None) -> None:  # noqa: ARG002
        self._event.set()
