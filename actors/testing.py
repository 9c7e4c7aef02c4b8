"""For tests of own actors: they run on a bus within the process, without a server.

async with running(GreeterActor()) as bus:
    assert await client(Greeter, bus).greet("Quispe") == "Allinllachu, Quispe!"
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import anyio

from ..bus.bus import Bus, local_bus
from ..bus.service import Drain, serve
from .own import check_constructor, made


@asynccontextmanager
async def running(*actors: object) -> AsyncIterator[Bus]:
    """Run actors until the end of the block, and return the bus on which they are; they are ready when the block begins.

    What is still running at its end is cancelled, and nothing is left. What the block raises is raised as it is.

    Args:
        actors: actors, or classes of actors, of which one is made as `ayllu worker --import` does. Async context managers
            are entered, and left at the end.

    Raises:
        TypeError: an actor does not implement what it inherits from, or a constructor needs other arguments.
    """
    failure: Exception | None = None
    async with local_bus() as bus, AsyncExitStack() as stack:
        made_actors = [await _entered(actor, bus, stack) for actor in actors]
        async with anyio.create_task_group() as tasks:
            try:
                await _start(tasks, bus, made_actors)
                yield bus
            except Exception as error:  # Raised outside, where no group is made of it.
                failure = error
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _entered(actor: object, bus: Bus, stack: AsyncExitStack) -> object:
    if isinstance(actor, type):
        check_constructor(actor)
        return await stack.enter_async_context(made(actor, bus))
    if isinstance(actor, AbstractAsyncContextManager):
        await stack.enter_async_context(actor)
    return actor


async def _start(tasks: anyio.abc.TaskGroup, bus: Bus, actors: list[object]) -> None:
    async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        await serve(bus, *actors, drain=Drain(0), task_status=task_status)

    await tasks.start(run)
