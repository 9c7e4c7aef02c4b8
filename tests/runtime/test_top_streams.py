"""What `ayllu top` asks a real nats-server, and what it follows of the turns that run there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from support.agents import MODEL, asked, running_agents
from support.buses import buses
from support.weather import CONFIG, WeatherActor

from ayllu.actors.agents.records import Execute
from ayllu.actors.agents.streams import (
    AGENTS,
    COMMANDS,
    JOURNAL,
    WAKE,
    command_subject,
    inbox_subject,
    journal_subject,
)
from ayllu.actors.engines.scripted import ScriptedEngine, script_of
from ayllu.bus.bus import Bus, local_bus
from ayllu.bus.transport import Message as Sent
from ayllu.runtime.top import TurnFacts
from ayllu.runtime.top_commands import Observer, observing
from ayllu.runtime.top_streams import JetStreamFacts, jetstream_facts
from ayllu.runtime.top_turns import MOST_SUBJECTS, MOST_TURNS, TurnWatch
from ayllu.schemas import BusError, Cancelled, Message, Role, encode

pytestmark = pytest.mark.asyncio

HELLO = [Message(role=Role.user, content="hello")]


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[Bus, JetStreamFacts]]:
    with anyio.fail_after(30):
        async with buses("nats", folder) as bus, jetstream_facts(bus.transport) as facts:
            yield bus, facts


async def stood(bus: Bus, agent: str, turn: str) -> None:
    """Let a turn stand among the commands of an agent that nobody works for."""
    command = Execute(turn=turn, messages=HELLO)
    await bus.storage.streams.append(
        command_subject(agent), encode(command), msg_id=f"{agent} {turn}"
    )


@pytest.mark.requirement("top-command")
async def test_streams_consumers_and_subjects(tmp_path: Path) -> None:
    async with opened(tmp_path) as (bus, facts):
        assert await facts.streams() == []
        assert await facts.subjects(AGENTS.name, COMMANDS) == {}, "there is no such stream"
        streams = bus.storage.streams
        await streams.ensure(AGENTS)
        await streams.ensure(WAKE)
        await stood(bus, "a b", "1")
        await stood(bus, "a b", "2")
        await stood(bus, "c", "1")
        for number in range(3):
            await streams.append("ayllu.v1.wake.agent.c", b"", msg_id=str(number))
        queue = await streams.work(WAKE.name, "executors")
        [taken] = await queue.fetch(1)
        agents, wake = await facts.streams()
        assert (agents.name, agents.entries, agents.last, agents.limit) == ("AGENTS", 3, 3, 4 << 30)
        assert (agents.subjects, agents.consumers, agents.bytes > 0) == (2, 0, True)
        assert (wake.name, wake.consumers) == ("AGENT_WAKE", 1)
        assert await facts.consumers(agents) == []
        [consumer] = await facts.consumers(wake)
        assert (consumer.stream, consumer.name) == ("AGENT_WAKE", "executors")
        assert (consumer.pending, consumer.unacknowledged) == (2, 1)
        await taken.ack()
        subjects = await facts.subjects(AGENTS.name, COMMANDS)
        assert subjects == {command_subject("a b"): 2, command_subject("c"): 1}


@pytest.mark.requirement("top-bounded")
async def test_readers_are_no_consumers_with_something_that_waits(tmp_path: Path) -> None:
    async with opened(tmp_path) as (bus, facts):
        await bus.storage.streams.ensure(JOURNAL)
        async with bus.storage.streams.read(JOURNAL.name):
            [journal] = await facts.streams()
            assert journal.consumers == 1
            assert await facts.consumers(journal) == []


@pytest.mark.requirement("top-command")
async def test_a_bus_without_jetstream_says_so() -> None:
    async with local_bus() as bus, jetstream_facts(bus.transport) as facts:
        with pytest.raises(BusError, match="no JetStream"):
            await facts.streams()


@pytest.mark.requirement("top-command")
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"\xff", "unreadably"),
        (b'{"streams": 3}', "unreadably"),
        (b'{"error": {"code": 503, "description": "no leader"}}', "no leader"),
    ],
)
async def test_answers_that_tell_nothing_are_errors(answer: bytes, says: str) -> None:
    async with (
        local_bus() as bus,
        jetstream_facts(bus.transport) as facts,
        anyio.create_task_group() as tasks,
    ):

        def reply(message: Sent) -> None:
            assert message.reply is not None
            tasks.start_soon(bus.transport.publish, message.reply, answer)

        async with bus.transport.subscribe("$JS.API.>", reply):
            with pytest.raises(BusError, match=says):
                await facts.streams()


@pytest.mark.requirement("top-command")
async def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ayllu.runtime.top_streams.ASK_SECONDS", 0.05)
    async with local_bus() as bus, jetstream_facts(bus.transport) as facts:
        async with bus.transport.subscribe("$JS.API.>", lambda _: None):
            with pytest.raises(BusError, match="no answer"):
                await facts.streams()


async def looked(watch: TurnWatch) -> dict[str, TurnFacts]:
    turns, left_out = await watch.look(1)
    assert left_out == 0
    return {turn.agent: turn for turn in turns}


@pytest.mark.requirement("top-command")
async def test_turns_are_followed_from_look_to_look(tmp_path: Path) -> None:
    gate = anyio.Event()
    engine = ScriptedEngine(script_of({"block": [gate, "free"], "": ["hello"]}), slots=2)
    async with opened(tmp_path) as (bus, facts), running_agents(bus, engine=engine) as agents:
        watch = TurnWatch(bus, facts, lambda: 4e9)
        assert await watch.look(1) == ([], 0)
        await agents.create("busy one", model=MODEL)
        await stood(bus, "nobody works here", "t")
        async with anyio.create_task_group() as tasks:

            async def take() -> None:
                await agents.system.execute(asked("busy one", "block", turn_id="t"))

            tasks.start_soon(take)
            await engine.wait_for(lambda engine: engine.running == 1)
            await stood(bus, "busy one", "next")
            found = await looked(watch)
            busy = found["busy one"]
            assert (busy.turn, busy.status, busy.step, busy.behind) == ("t", "running", "model", 1)
            assert busy.seconds is not None
            assert busy.seconds > 1e9, "the clock is that of this machine"
            assert found["nobody works here"] == TurnFacts("nobody works here", "t", "queued")
            gate.set()
        with anyio.fail_after(10):
            while "busy one" in await looked(watch):
                await anyio.sleep(0.05)


@pytest.mark.requirement("top-command")
async def test_a_turn_that_waits_for_people(tmp_path: Path) -> None:
    call = '<tool_call>[{"name": "weather.forecast", "arguments": {"city": "Cusco"}}]</tool_call>'
    async with (
        opened(tmp_path) as (bus, _),
        running_agents(bus, WeatherActor(), script="echo") as agents,
        observing(bus) as observer,
    ):
        await agents.create("careful", **{**CONFIG, "require_approval": CONFIG["executable_tools"]})
        async with anyio.create_task_group() as tasks:

            async def take() -> None:
                with suppress(Cancelled):
                    await agents.system.execute(asked("careful", call, turn_id="t"))

            tasks.start_soon(take)
            with anyio.fail_after(10):
                while not [one async for one in agents.turns.approvals()]:
                    await anyio.sleep(0.02)
            [turn] = await turns_of(observer)
            assert (turn.agent, turn.status) == ("careful", "waiting")
            assert turn.step == "tools: weather.forecast"
            assert turn.tokens > 0
            await agents.turns.cancel("careful", "t")


async def turns_of(observer: Observer) -> list[TurnFacts]:
    return list((await observer.look()).turns)


@pytest.mark.requirement("top-command")
async def test_inboxes_are_looked_into_and_what_is_no_command_is_passed_over(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as (bus, facts):
        streams = bus.storage.streams
        await streams.ensure(AGENTS)
        await streams.ensure(JOURNAL)
        await streams.append(inbox_subject("told"), encode(HELLO[0]), msg_id="m1")
        await streams.append(command_subject("broken"), b"{", msg_id="m2")
        await stood(bus, "lost", "t")
        await streams.append(journal_subject("lost", "t"), b"[1]", msg_id="m3")
        await streams.append("ayllu.v1.agent.=zz.command", b"{}", msg_id="m4")
        assert await looked(TurnWatch(bus, facts)) == {"told": TurnFacts("told", "m1", "queued")}


@pytest.mark.requirement("top-bounded")
async def test_of_many_agents_the_busiest_are_looked_at(tmp_path: Path) -> None:
    async with opened(tmp_path) as (bus, facts):
        await bus.storage.streams.ensure(AGENTS)
        await bus.storage.streams.ensure(JOURNAL)
        for number in range(MOST_TURNS + 5):
            await stood(bus, f"agent {number:02}", "t")
        await stood(bus, f"agent {MOST_TURNS + 4}", "t2")
        turns, left_out = await TurnWatch(bus, facts).look(1)
        assert (len(turns), left_out) == (MOST_TURNS, 5)
        assert (turns[0].agent, turns[0].behind) == (f"agent {MOST_TURNS + 4}", 1)
        assert await TurnWatch(bus, facts).look(MOST_SUBJECTS + 1) == ([], MOST_SUBJECTS + 1)
