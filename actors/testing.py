"""For tests of own actors: they run on a bus within the process, without a server.

async with running(GreeterActor()) as bus:
assert await client(Greeter, bus).greet("Quispe") == "Allinllachu, Quispe!"
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import anyio
from anyio.abc import TaskGroup, TaskStatus

from ..bus.bus import Bus, local_bus
from ..bus.client import client
from ..bus.service import Drain, serve
from ..schemas import AgenticSystem
from .own import check_constructor, made

MODEL = "script"
"""The model of `running_agents`."""


@asynccontextmanager
async def running(*actors: object) -> AsyncIterator[Bus]:
    """Run actors until the end of the block, on a bus of their own; they are ready when it begins.

    What is still running at its end is cancelled, and nothing is left. What the block raises is raised as it is.

    Args:
        actors: actors, or classes of actors, of which one is made as ``ayllu worker --import`` does. Async context managers
            are entered, and left at the end.

    Raises:
        TypeError: an actor does not implement what it inherits from, or a constructor needs other arguments.
    """
    async with local_bus() as bus, AsyncExitStack() as stack:
        entered = [await _entered(actor, bus, stack) for actor in actors]

        async def begin(tasks: TaskGroup) -> None:
            await _serve(tasks, bus, entered)

        async with _beside(begin):
            yield bus


@asynccontextmanager
async def running_agents(bus: Bus, script: str = "echo") -> AsyncIterator[AgenticSystem]:
    """Run agents on a bus until the end of the block, and return their API; actors that run there can be their tools.

    Their model is called `MODEL`, and says what is known before: by default, it repeats what it was told last, which may
    be a call (``<tool_call>[{"name": ..., "arguments": ...}]</tool_call>``).

    Args:
        bus: of `running`.
        script: the model's script, as in a configuration (``source`` of the engine ``scripted``).
    """
    # Tests of actors alone need none of this.
    from .agents.actor import AgenticSystemActor
    from .agents.executor import Executor
    from .agents.register import open_register
    from .engines.scripted import ScriptedEngine, script_from
    from .inference import InferenceActor

    async with ScriptedEngine(script_from(script)) as engine:
        register = await open_register(bus)
        executor = Executor(bus)
        actors = InferenceActor(engine, MODEL), AgenticSystemActor(register, executor)

        async def begin(tasks: TaskGroup) -> None:
            await tasks.start(executor.run)
            await _serve(tasks, bus, actors)

        async with _beside(begin):
            yield client(AgenticSystem, bus)


async def _entered(actor: object, bus: Bus, stack: AsyncExitStack) -> object:
    if isinstance(actor, type):
        check_constructor(actor)
        return await stack.enter_async_context(made(actor, bus))
    if isinstance(actor, AbstractAsyncContextManager):
        await stack.enter_async_context(actor)
    return actor


async def _serve(tasks: TaskGroup, bus: Bus, actors: Sequence[object]) -> None:
    async def run(*, task_status: TaskStatus[None]) -> None:
        await serve(bus, *actors, drain=Drain(0), task_status=task_status)

    await tasks.start(run)


@asynccontextmanager
async def _beside(begin: Callable[[TaskGroup], Awaitable[None]]) -> AsyncIterator[None]:
    """Run tasks beside a block. Of what it raises no group is made, as that of a task group would be."""
    failure: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        try:
            await begin(tasks)
            yield
        except (anyio.get_cancelled_exc_class(), GeneratorExit):
            raise
        except (
            BaseException
        ) as error:  # pytest's own, such as that of `pytest.skip`, are no `Exception`s.
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
