"""How own actors are made, and run within a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol, Self

import anyio
import pytest

from ayllu.actors.own import check_constructor
from ayllu.actors.testing import MODEL, running, running_agents
from ayllu.bus import Bus, client
from ayllu.schemas import (
    AgenticSystemCreateRequest,
    AgenticSystemExecuteRequest,
    Message,
    NotFound,
    Role,
    ToolDefinition,
    Unavailable,
    webmethod,
)


class Counter(Protocol):
    """Counts."""

    @webmethod(route="/counter/add", tool=True)
    async def add(self, number: int) -> int:
        """Add a number, and return the sum."""
        ...

    @webmethod(route="/counter/wait")
    async def wait(self) -> None:
        """Wait for ever."""
        ...

    @webmethod(route="/counter/upward")
    def upward(self) -> AsyncIterator[int]:
        """Count for ever."""
        ...


class CounterActor(Counter):
    """Counts in memory, from its beginning to its end."""

    def __init__(self, bus: Bus | None = None) -> None:
        self.bus = bus
        self.sum = 0
        self.told: list[str] = []
        self.waiting = anyio.Event()

    async def __aenter__(self) -> Self:
        self.told.append("entered")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.told.append("left")

    async def add(self, number: int) -> int:
        if not number:
            raise NotFound("nothing to add")
        self.sum += number
        return self.sum

    async def wait(self) -> None:
        self.waiting.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.told.append("cancelled")

    async def upward(self) -> AsyncIterator[int]:
        while True:
            self.sum += 1
            yield self.sum


@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-testing")
async def test_an_actor_within_a_test() -> None:
    actor = CounterActor()
    async with running(actor) as bus, anyio.create_task_group() as tasks:
        counter = client(Counter, bus)
        assert await counter.add(2) == 2
        with pytest.raises(NotFound):
            await counter.add(0)
        numbers = counter.upward()
        assert [await anext(aiter(numbers)) for _ in range(3)] == [3, 4, 5]

        async def hang() -> None:
            with pytest.raises(Unavailable):
                await counter.wait()

        tasks.start_soon(hang)
        with anyio.fail_after(5):
            await actor.waiting.wait()
        assert bus.calls.open_count == 2
        tasks.cancel_scope.cancel()
    # Ended with the block: the actor last, after the work that it had.
    assert actor.told == ["entered", "cancelled", "left"]
    assert bus.calls.open_count == 0


@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-testing")
async def test_a_class_is_made_into_an_actor_with_the_bus() -> None:
    seen: list[CounterActor] = []

    class Seen(CounterActor):
        def __init__(self, bus: Bus) -> None:
            super().__init__(bus)
            seen.append(self)

    async with running(Seen) as bus:
        assert seen[0].bus is bus
        assert await client(Counter, bus).add(1) == 1
    assert seen[0].told == ["entered", "left"]


@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-testing")
async def test_who_is_cancelled_while_an_actor_begins_does_not_wait_for_ever() -> None:
    async def run(scope: anyio.CancelScope, begun: list[int]) -> None:
        with scope:
            async with running(CounterActor()):
                begun.append(1)
                await anyio.sleep_forever()

    begun: list[int] = []
    moments = 0
    with anyio.fail_after(10):
        while not begun:  # At each moment until it has begun.
            moments += 1
            async with anyio.create_task_group() as tasks:
                scope = anyio.CancelScope()
                tasks.start_soon(run, scope, begun)
                for _ in range(moments):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
    assert moments > 3


@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-testing")
async def test_what_the_block_raises_is_raised_as_it_is() -> None:
    with pytest.raises(KeyError):
        async with running(CounterActor()):
            raise KeyError
    with pytest.raises(NotFound):
        async with running(CounterActor()) as bus, running_agents(bus):
            await client(Counter, bus).add(0)
    for skipped in (pytest.skip, pytest.fail):  # These are no `Exception`s.
        with pytest.raises(skipped.Exception):
            async with running(CounterActor()) as bus, running_agents(bus):
                skipped("not here")
    with pytest.raises(TypeError, match="inherits from no Protocol"):
        async with running(object()):
            pass

    class Needy(CounterActor):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

    with pytest.raises(TypeError, match="path"):
        async with running(Needy):
            pass


@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-testing")
async def test_an_agent_uses_it_as_a_tool() -> None:
    actor = CounterActor()
    call = '<tool_call>[{"name": "counter.add", "arguments": {"number": 7}}]</tool_call>'
    with anyio.fail_after(20):
        async with running(actor) as bus, running_agents(bus) as agents:
            await agents.create(
                AgenticSystemCreateRequest(
                    uuid="a",
                    instructions="Repeat.",
                    model=MODEL,
                    available_tools=[ToolDefinition("counter.add")],
                    executable_tools={"counter.add"},
                    max_steps=2,
                )
            )
            await agents.execute(
                AgenticSystemExecuteRequest("a", [Message(role=Role.user, content=call)])
            )
    assert actor.sum == 7


@pytest.mark.requirement("own-actor-import")
def test_constructors() -> None:
    class Optional(CounterActor):
        def __init__(self, path: str = "", *rest: int, bus: Bus, **more: int) -> None: ...

    class Positional(CounterActor):
        def __init__(self, bus: Bus, /) -> None: ...

    class Plain(Counter):
        async def add(self, number: int) -> int:
            return number

        async def wait(self) -> None: ...

        async def upward(self) -> AsyncIterator[int]:
            yield 1

    for fine in (CounterActor, Optional, Plain):
        check_constructor(fine)
    with pytest.raises(TypeError, match="bus"):
        check_constructor(Positional)
