"""The engines of configured models, while they run in this worker: what stands on one ends with it, and comes back with the next."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from ...schemas import Unavailable
from ..engines.engine import InferenceEngine


@dataclass(eq=False, slots=True)
class _Running:
    engine: InferenceEngine
    users: set[anyio.CancelScope] = field(default_factory=set)
    left: anyio.Event = field(default_factory=anyio.Event)


class RunningEngines:
    """Knows the engines by the names of their models; whoever runs one tells so."""

    def __init__(self) -> None:
        self._running: dict[str, _Running] = {}
        self._changed = anyio.Event()

    @asynccontextmanager
    async def running(self, name: str, engine: InferenceEngine) -> AsyncGenerator[None]:
        """Let others use a model's engine inside of the block; its end ends what they do, and waits for that."""
        one = self._running[name] = _Running(engine)
        self._changed.set()
        self._changed = anyio.Event()
        try:
            yield
        finally:
            del self._running[name]
            for scope in list(one.users):
                scope.cancel()
            # They let their running calls go on for a while, which need the engine.
            with anyio.CancelScope(shield=True):
                while one.users:
                    one.left = anyio.Event()
                    await one.left.wait()

    def check(self, name: str) -> None:
        """Refuse what needs an engine that does not run now.

        Raises:
            Unavailable: it does not.
        """
        if name not in self._running:
            raise Unavailable(f"the engine of {name!r} is being started: try again later")

    async def wait_for(self, names: Sequence[str]) -> None:
        """Wait until the engines of some models run."""
        while not self._running.keys() >= set(names):
            await self._changed.wait()

    @asynccontextmanager
    async def using(self, name: str) -> AsyncGenerator[InferenceEngine]:
        """Wait until the engine of a model runs, and use it inside of the block.

        Raises:
            Unavailable: the engine ended, and the block with it.
        """
        await self.wait_for([name])
        one = self._running[name]
        scope = anyio.CancelScope()
        one.users.add(scope)
        try:
            with scope:
                yield one.engine
        finally:
            one.users.discard(scope)
            one.left.set()
        if scope.cancel_called:
            # Whoever asked for the block lives: it is no `EngineDead` of his.
            raise Unavailable(f"the engine of {name!r} ended: try again later")


@asynccontextmanager
async def watched(engine: InferenceEngine) -> AsyncGenerator[None]:
    """End a block when an engine dies, though no request tells: some can watch themselves.

    Raises:
        EngineDead: it died.
    """
    watch = getattr(engine, "watch", None)
    if watch is None:
        yield
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        yield
        tasks.cancel_scope.cancel()
