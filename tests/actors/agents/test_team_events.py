"""Following a tree of turns: slow readers, many turns below, readers of the executor's own process."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import aclosing

import anyio
import anyio.lowlevel
import pytest
from support.agents import asked, running_agents
from support.teams import Part, asks, call, calls, echoes, parts
from support.weather import CONFIG, FORECAST, NOW, WeatherActor

from ayllu.actors.agents import executor as executors
from ayllu.actors.agents import nesting
from ayllu.actors.agents.desk import LEASE_BUCKET
from ayllu.actors.agents.nesting import MAX_SEEN, follow_tree, read_seen, write_seen
from ayllu.actors.agents.streams import lane_of
from ayllu.actors.engines.scripted import Step
from ayllu.actors.leases import Lease, lease_bucket, take_lease
from ayllu.bus.bus import local_bus
from ayllu.bus.durable import KeyValue
from ayllu.schemas import Delegation, SubAgent, TurnEvent

pytestmark = pytest.mark.asyncio


@pytest.mark.requirement("team-events")
async def test_a_slow_reader_loses_nothing_of_the_turns_below(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nesting, "GRACE_SECONDS", 0.02)
    monkeypatch.setattr(nesting, "AHEAD", 1)
    words = " ".join(str(number) for number in range(20))
    script = parts({"boss": asks("ask"), "worker": echoes})
    async with local_bus() as bus, running_agents(bus, script=script) as agents:
        await agents.create("worker", instructions="worker")
        await agents.create("boss", instructions="boss", sub_agents=[SubAgent("ask", ["worker"])])
        with anyio.fail_after(20):
            await agents.system.execute(asked("boss", words, turn_id="t"))
            found = ""
            async for event in follow_tree(bus, agents.register.claims, "boss", "t"):
                chunk = event.child.event.event if event.child is not None else None
                if chunk is not None and chunk.response_text_delta:
                    await anyio.sleep(0.03)  # It is slower than the grace of those that tell it.
                    found += chunk.response_text_delta
        assert found == words


@pytest.mark.requirement("team-events")
async def test_no_event_says_that_its_reader_is_where_it_was_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nesting, "AHEAD", 1)

    def boss(_: str, answers: Sequence[str]) -> Sequence[Step] | str:
        asking = [call(tool, message="a b c d e f g h") for tool in ("ask", "too") * 3]
        return "end" if answers else calls(*asking, NOW, FORECAST)

    script = parts({"boss": boss, "worker": echoes})
    async with local_bus() as bus, running_agents(bus, WeatherActor(), script=script) as agents:
        await agents.create("worker", instructions="worker")
        subs = [SubAgent(name, ["worker"]) for name in ("ask", "too")]
        await agents.create("boss", instructions="boss", sub_agents=subs, **CONFIG)
        index, ended = 0, False
        with anyio.fail_after(20):
            await agents.system.execute(asked("boss", "x", turn_id="t"))
            events = follow_tree(bus, agents.register.claims, "boss", "t")
            async with aclosing(events):
                async for event in events:
                    await anyio.lowlevel.checkpoint()  # The others are a little faster.
                    assert event.index == index
                    index = event.index + (event.event is not None)
                    ended = event.turn is not None
        assert ended


def fans(width: int) -> Part:
    """Return a part: asks many at once."""

    def part(asked: str, answers: Sequence[str]) -> Sequence[Step] | str:
        tasks = [{"message": f"{asked} {number}"} for number in range(width)]
        return answers[0] if answers else calls(call("ask", tasks=tasks))

    return part


def told_of_each(events: Sequence[TurnEvent]) -> dict[str, list[int]]:
    """Return the indexes of the events of each turn of a tree, and of its end, as they were told."""
    found: dict[str, list[int]] = {}
    for event in events:
        name, one = "root", event
        while one.child is not None:
            name, one = one.child.turn_id, one.child.event
        found.setdefault(name, []).append(one.index)
    return found


@pytest.mark.requirement("team-events")
@pytest.mark.parametrize("seed", range(4))
async def test_a_reader_that_breaks_off_again_and_again_is_told_all_once(seed: int) -> None:
    chance = random.Random(seed)

    def worker(_: str, __: Sequence[str]) -> Sequence[Step]:
        return [step for word in ("a", " b", " c") for step in (0.001, word)]

    script = parts({"boss": fans(4), "lead": fans(4), "worker": worker})
    async with local_bus() as bus, running_agents(bus, script=script) as agents:
        await agents.create("worker", instructions="worker")
        for name, other in (("lead", "worker"), ("boss", "lead")):
            asking = SubAgent("ask", [other], kind=Delegation.fan_out)
            await agents.create(name, instructions=name, sub_agents=[asking])
        found: list[TurnEvent] = []
        epoch, index, seen = 0, 0, ""
        with anyio.fail_after(20):
            await agents.system.execute(asked("boss", "x", turn_id="t"))
            while not found or found[-1].turn is None:
                cut = len(found) + chance.randint(1, 40)
                events = follow_tree(
                    bus,
                    agents.register.claims,
                    "boss",
                    "t",
                    epoch=epoch,
                    index=index,
                    seen=read_seen(seen),
                )
                async with aclosing(events):
                    async for event in events:
                        found.append(event)
                        epoch, index = event.epoch, event.index + (event.event is not None)
                        seen = event.child.children if event.child is not None else seen
                        if len(found) == cut:
                            break
            whole = await agents.events("boss", "t")
        assert len(told_of_each(whole)) == 1 + 4 + 16
        assert told_of_each(found) == told_of_each(whole)


@pytest.mark.requirement("team-events")
async def test_what_was_seen_of_very_many_turns_can_be_read() -> None:
    seen = {f"{number:032x}": (1, number) for number in range(1000)}
    text = write_seen(seen)
    assert MAX_SEEN - 50 < len(text) <= MAX_SEEN
    known = read_seen(text)
    assert known == dict(list(seen.items())[: len(known)])


@pytest.mark.requirement("detached-turns")
async def test_a_reader_does_not_wait_for_an_executor_that_does_not_get_the_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited, answered = anyio.Event(), anyio.Event()

    async def slow(leases: KeyValue, name: str, owner: str) -> Lease | None:
        waited.set()
        await answered.wait()
        return await take_lease(leases, name, owner)

    monkeypatch.setattr(executors, "take_lease", slow)
    async with local_bus() as bus, running_agents(bus, executors=0) as agents:
        executor, _ = await agents.executor()
        lane = lane_of("a", "t")
        assert await take_lease(await lease_bucket(bus, LEASE_BUCKET), lane, "another") is not None
        with anyio.fail_after(5), executor.hub.reading("a", "t") as told:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(executor.start, lane)
                await waited.wait()
                assert await executor.start(lane)  # It is about to begin, it seems.
                answered.set()
            assert [one async for one in told] == []
