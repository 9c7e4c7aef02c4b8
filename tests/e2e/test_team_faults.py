"""Trees of turns outlive the executors that work on them, killed with -9 at random points; inboxes lose nothing in a storm.

The scripted engine stands in for a model: what each agent says is known, and takes a moment.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from anyio.abc import Process
from msgspec.structs import replace
from support.agents import Agents, asked, running_agents
from support.processes import SCRIPTED, running_up, support_process
from support.teams import Part, call, calls, parts
from support.weather import calling

from ayllu.actors.agents.entries import durable_claims, standing_records
from ayllu.actors.agents.records import Returned
from ayllu.actors.agents.streams import JOURNAL, inbox_subject
from ayllu.actors.engines.scripted import Step
from ayllu.actors.events import EVENTS
from ayllu.bus.bus import Bus, connect
from ayllu.bus.server import embedded_server
from ayllu.bus.transport import Message
from ayllu.client import connect as connect_client
from ayllu.schemas import (
    AgenticSystemCreateRequest,
    Delegation,
    SubAgent,
    Turn,
    TurnEnded,
    TurnEvent,
    TurnStatus,
    decode,
    encode,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

WIDTH, TREES, KILLS, EXECUTORS = 3, 4, 6, 3
WHOLE = 1 + WIDTH + WIDTH * WIDTH
PAUSE = 0.2
SEED = 10


def worker(asked: str, _: Sequence[str]) -> Sequence[Step]:
    """A part: takes a while, word by word."""
    return [step for word in ("done", f" {asked}") for step in (PAUSE, word)]


def splits(asked: str, answers: Sequence[str]) -> Sequence[Step] | str:
    """A part: lets many do what is asked, and says what they answered."""
    tasks = [{"message": f"{asked}{number}"} for number in range(WIDTH)]
    return [PAUSE, answers[0]] if answers else calls(call("ask", tasks=tasks))


PARTS: dict[str, Part] = {"boss": splits, "lead": splits, "worker": worker}


@asynccontextmanager
async def three_levels(folder: Path) -> AsyncIterator[tuple[Agents, str]]:
    """Serve three agents that ask each other, and no executor."""
    async with (
        embedded_server(folder / "nats") as server,
        connect(server.url) as bus,
        running_agents(bus, script=parts(PARTS), executors=0) as agents,
    ):
        for name, below in (("worker", None), ("lead", "worker"), ("boss", "lead")):
            subs = [SubAgent("ask", [below], kind=Delegation.fan_out)] if below else []
            await agents.system.create(
                AgenticSystemCreateRequest(name, name, "script", sub_agents=subs)
            )
        yield agents, server.url


async def end(*processes: Process) -> None:
    """End processes that may have ended."""
    for process in processes:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await process.aclose()


async def one_tree(agents: Agents, root: str) -> list[Turn]:
    """Return a turn and all below it."""
    found = [await agents.turns.get("boss", root)]
    for turn in found:
        found += [
            await agents.turns.get(child.agent_uuid, child.turn_id) for child in turn.children
        ]
    return found


async def check_returns(bus: Bus, turns: Sequence[Turn]) -> None:
    """Check that what each turn below answered was taken once."""
    for turn in turns:
        taken: Counter[tuple[int, int]] = Counter()
        claims = durable_claims(bus)
        async with standing_records(bus, claims, turn.agent_uuid, turn.turn_id) as records:
            async for _, record in records:
                if isinstance(record, Returned):
                    taken[record.call, record.task] += 1
        assert set(taken.values()) <= {1}
        assert sum(taken.values()) == len(turn.children)


async def ends(bus: Bus) -> Counter[str]:
    """Return how often the end of each turn was told."""
    found: Counter[str] = Counter()
    async with bus.storage.streams.replay(EVENTS.name, "ayllu.v1.event.turn.>") as entries:
        async for entry in entries:
            found[decode(entry.payload, TurnEnded).turn_id] += 1
    return found


async def journals(bus: Bus) -> int:
    """Return how many turns there are."""
    async with bus.storage.streams.replay(JOURNAL.name, ">") as entries:
        return len({entry.subject async for entry in entries})


@pytest.mark.requirement("team-survives")
async def test_executors_are_killed_at_random_points_of_three_level_trees(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    async with three_levels(tmp_path) as (agents, url), anyio.create_task_group() as tasks:
        running: list[Process] = [
            await support_process("executor_process", url) for _ in range(EXECUTORS)
        ]
        ended, in_time = anyio.Event(), 0

        async def take(number: int) -> None:
            await agents.system.execute(asked("boss", f"t{number}-", turn_id=f"root {number}"))

        async def all_trees() -> None:
            async with anyio.create_task_group() as trees:
                for number in range(TREES):
                    trees.start_soon(take, number)
            ended.set()

        try:
            tasks.start_soon(all_trees)
            for _ in range(KILLS):
                with anyio.move_on_after(chance.uniform(0.05, 0.6)):
                    await ended.wait()
                in_time += not ended.is_set()
                victim = running.pop(chance.randrange(len(running)))
                victim.kill()
                await victim.wait()
                running.append(await support_process("executor_process", url))
            with anyio.fail_after(60):
                await ended.wait()
        finally:
            await end(*running)
        assert in_time == KILLS
        told = await ends(agents.bus)
        for number in range(TREES):
            turns = await one_tree(agents, f"root {number}")
            assert len(turns) == WHOLE
            assert {turn.status for turn in turns} == {TurnStatus.completed}
            answer = str(turns[0].response_message)
            for one in range(WIDTH):
                for two in range(WIDTH):
                    assert answer.count(f"done t{number}-{one}{two}") == 1
            await check_returns(agents.bus, turns)
            assert [told[turn.turn_id] for turn in turns] == [1] * WHOLE
        assert await journals(agents.bus) == TREES * WHOLE


INBOXES, EACH = 20, 30


@pytest.mark.requirement("inbox-order", "inbox-durable")
async def test_a_storm_of_messages_is_worked_off_in_order_though_an_executor_is_killed(
    tmp_path: Path,
) -> None:
    names = [f"agent {number}" for number in range(INBOXES)]
    async with (
        embedded_server(tmp_path / "nats") as server,
        connect(server.url) as bus,
        running_agents(bus, executors=0) as agents,
    ):
        await agents.create(names[0])
        record = await agents.register.record(names[0])
        for name in names[1:]:  # To create each takes half a second: tools are looked for.
            config = replace(record.config, uuid=name)
            await agents.register.agents.put(name, encode(replace(record, config=config)))
        one = await support_process("executor_process", server.url)
        two = await support_process("executor_process", server.url)
        told, done = set[str](), anyio.Event()

        def on_end(message: Message) -> None:
            told.add(decode(message.payload, TurnEnded).turn_id)
            if len(told) == INBOXES * EACH // 3:
                one.kill()
            if len(told) == INBOXES * EACH:
                done.set()

        try:
            async with bus.transport.subscribe("ayllu.v1.event.turn.>", on_end):
                async with anyio.create_task_group() as tasks:
                    for name in names:
                        tasks.start_soon(tell_all, bus, name)
                with anyio.fail_after(60):
                    await done.wait()
        finally:
            await end(one, two)
        # Who listens may hear of an end twice; in the stream it stands once.
        assert set((await ends(bus)).values()) == {1}
        for name in names:
            turns = [turn async for turn in agents.turns.list(name)]
            assert [turn.turn_id for turn in turns] == ids_of(name)
            assert {turn.status for turn in turns} == {TurnStatus.completed}


def ids_of(name: str) -> list[str]:
    return [f"{name} {number}" for number in range(EACH)]


async def tell_all(bus: Bus, name: str) -> None:
    """Put messages into an inbox, in order."""
    for msg_id in ids_of(name):
        payload = encode({"role": "user", "content": msg_id})
        await bus.storage.streams.append(inbox_subject(name), payload, msg_id=msg_id)


COUNT = 60
MODELS = f"""
[[models]]
name = "slow"
engine = "scripted"
source = "slow:{COUNT}"
"""


@pytest.mark.requirement("team-events")
@pytest.mark.parametrize("victim", ["worker gateway", "worker agents"])
async def test_who_follows_a_tree_sees_each_event_once_though_a_process_is_killed(
    tmp_path: Path, victim: str
) -> None:
    ask = calling(call("ask", message="Count."))
    with running_up(tmp_path / "data", SCRIPTED + MODELS) as up:
        async with connect_client(up.url) as stack:
            create = stack.agentic_system.create
            await create(AgenticSystemCreateRequest("counter", "Count.", "slow"))
            sub = SubAgent("ask", ["counter"])
            await create(
                AgenticSystemCreateRequest("boss", "Repeat.", "echo", sub_agents=[sub], max_steps=2)
            )
            below: list[TurnEvent] = []
            with anyio.fail_after(60):
                async with stack.agent("boss").turn(ask) as turn:
                    async for event in turn:
                        if event.child is not None:
                            below.append(event.child.event)
                        if len(below) == COUNT // 3:
                            await anyio.to_thread.run_sync(up.kill_child, victim)
                        assert event.child is None or event.child.agent_uuid == "counter"
            told = [event for event in below if event.event is not None]
            assert [event.index for event in told] == list(range(len(told)))
            texts = [event.event.response_text_delta or "" for event in told if event.event]
            assert "".join(texts) == " ".join(str(one) for one in range(1, COUNT + 1))
            assert turn.resumed
            assert [event.turn.status for event in below if event.turn] == [TurnStatus.completed]
        assert up.stop() == 0
