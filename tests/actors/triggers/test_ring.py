"""Agents that trigger one another, without end but for their budget; with real executors and a scripted model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from support.agents import Agents, asked, running_agents
from support.buses import buses

from ayllu.actors.events import EVENTS
from ayllu.actors.triggers.actor import TriggersActor
from ayllu.actors.triggers.shelf import open_shelf
from ayllu.actors.triggers.worker import TriggerWorker
from ayllu.bus.client import client
from ayllu.schemas import (
    Limits,
    Schedule,
    TriggerCreateRequest,
    Triggers,
    TurnEnded,
    TurnStatus,
    decode,
)

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def running(kind: str, folder: Path, agents: int) -> AsyncIterator[tuple[Agents, Triggers]]:
    """Run agents ``a0``, ``a1``, ..., and a worker of triggers."""
    async with buses(kind, folder) as bus:
        shelf = await open_shelf(bus)
        async with running_agents(bus, TriggersActor(shelf)) as made:
            await made.tasks.start(TriggerWorker(shelf).run)
            async with anyio.create_task_group() as tasks:
                for number in range(agents):
                    tasks.start_soon(made.create, f"a{number}")
            yield made, client(Triggers, bus)


async def ring(triggers: Triggers, agents: int, max_chain: int) -> None:
    """Let each agent be started by the end of the one before it."""

    async def create(number: int) -> None:
        await triggers.create(
            TriggerCreateRequest(
                name=f"t{number}",
                agent_id=f"a{number}",
                subject=f"turn.a{(number - 1) % agents}.completed",
                template="${text}",
                max_chain=max_chain,
            )
        )

    async with anyio.create_task_group() as tasks:
        for number in range(agents):
            tasks.start_soon(create, number)


async def until_refused(triggers: Triggers, name: str) -> str:
    """Return why a trigger starts nothing any more, when it says so."""
    while not (error := (await triggers.get(name)).last_error):
        await anyio.sleep(0.05)
    return error


async def turns(agents: Agents) -> list[TurnEnded]:
    async with agents.bus.storage.streams.replay(EVENTS.name, "ayllu.v1.event.turn.>") as entries:
        return [decode(entry.payload, TurnEnded) async for entry in entries]


@pytest.mark.requirement("trigger-ring")
async def test_rings_of_agents_stop_at_their_budgets(tmp_path: Path) -> None:
    size, steps, starts = 200, 125, (0, 50, 100, 150)
    async with running("nats", tmp_path, size) as (agents, triggers):
        await ring(triggers, size, max_chain=10_000)

        async def go_round(start: int) -> None:
            request = asked(f"a{start}", f"from {start}", limits=Limits(steps=steps))
            await agents.system.execute(request)
            error = await until_refused(triggers, f"t{(start + steps) % size}")
            assert "budget: steps" in error

        with anyio.fail_after(90):
            async with anyio.create_task_group() as tasks:
                for start in starts:
                    tasks.start_soon(go_round, start)
        found = await turns(agents)
        assert len(found) == len(starts) * steps
        assert {one.status for one in found} == {TurnStatus.completed}
        for start in starts:
            # What was said goes all the way.
            way = [one for one in found if one.text.endswith(f"from {start}")]
            assert [one.agent_uuid for one in way] == [
                f"a{number % size}" for number in range(start, start + steps)
            ]
            assert [one.left.steps for one in way] == list(reversed(range(steps)))
            assert [one.cause.chain if one.cause else 0 for one in way] == list(range(steps))


@pytest.mark.requirement("trigger-chain", "trigger-ring")
@pytest.mark.parametrize("kind", ["local", "nats"])
async def test_a_ring_without_a_budget_stops_at_max_chain(kind: str, tmp_path: Path) -> None:
    async with running(kind, tmp_path, 3) as (agents, triggers):
        await ring(triggers, 3, max_chain=10)
        with anyio.fail_after(60):
            await agents.system.execute(asked("a0", "go"))
            # The turns of the chain: a0, and ten that triggers have started, the last of them a1's.
            error = await until_refused(triggers, "t2")
        assert "max_chain" in error
        assert len(await turns(agents)) == 11


@pytest.mark.requirement("trigger-once")
@pytest.mark.parametrize("kind", ["local", "nats"])
async def test_what_a_schedule_starts_is_a_turn(kind: str, tmp_path: Path) -> None:
    async with running(kind, tmp_path, 1) as (agents, triggers):
        await triggers.create(
            TriggerCreateRequest("due", "a0", schedule=Schedule(every=1), template="It is time.")
        )
        with anyio.fail_after(30):
            async with agents.bus.storage.streams.read(
                EVENTS.name, "ayllu.v1.event.turn.>"
            ) as entries:
                event = decode((await anext(entries)).payload, TurnEnded)
        assert event.status is TurnStatus.completed
        assert event.cause is not None
        assert event.cause.trigger == "due"
        turn = await agents.turns.get("a0", event.turn_id)
        assert turn.user_messages[0].content == "It is time."
        assert turn.cause == event.cause
