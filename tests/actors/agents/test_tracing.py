"""Traces of turns over a bus: found by their ids, with all turns that they have started, within bounds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from support.agents import Agents, asked, running_agents
from support.buses import buses
from support.journals import AT, began, said, tools

from ayllu.actors.agents.records import Delegated, Execute, Split, Task
from ayllu.actors.agents.register import open_register
from ayllu.actors.agents.streams import JOURNAL, command_subject, journal_subject
from ayllu.actors.agents.tracing import TurnTracesActor
from ayllu.bus.bus import Bus
from ayllu.bus.client import client
from ayllu.bus.service import serve
from ayllu.schemas import (
    Conflict,
    Delegation,
    InvalidRequest,
    Message,
    NotFound,
    Role,
    SubAgent,
    ToolCall,
    TurnStatus,
    TurnTrace,
    TurnTraces,
    encode,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("turn-trace-operation")]
Opened = tuple[Bus, Agents, TurnTraces]


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[Opened]:
    with anyio.fail_after(40):
        async with buses(kind, folder) as bus, running_agents(bus) as agents:
            await agents.tasks.start(serve, bus, TurnTracesActor(await open_register(bus)))
            yield bus, agents, client(TurnTraces, bus)


def call(tool: str, message: str) -> str:
    """Return what lets the model, which repeats what it is told, ask another agent."""
    return f'<tool_call>[{{"name": "{tool}", "arguments": {{"message": {encode(message).decode()}}}}}]</tool_call>'


def below(trace: TurnTrace) -> list[TurnTrace]:
    return [child for step in trace.steps for one in step.calls for child in one.children]


def left_out(trace: TurnTrace) -> int:
    return sum(one.left_out for step in trace.steps for one in step.calls)


@pytest.mark.parametrize("kind", ["local", "nats"])
async def test_a_turn_is_found_by_its_id(kind: str, tmp_path: Path) -> None:
    async with opened(kind, tmp_path) as (_, agents, traces):
        for agent in ("one *>", "two"):
            await agents.create(agent)
        await agents.system.execute(asked("one *>", "Hello.", turn_id="only here"))
        trace = await traces.trace("only here")
        assert trace == await traces.trace("only here", "one *>")
        assert (trace.agent_uuid, trace.turn_id) == ("one *>", "only here")
        assert (trace.status, trace.attempts) == (TurnStatus.completed, 1)
        assert [step.step_type for step in trace.steps] == ["model_inference"]
        assert trace.spent.tokens > 0
        for agent in ("one *>", "two"):
            await agents.system.execute(asked(agent, "Hello.", turn_id="same"))
        with pytest.raises(Conflict, match="'one \\*>', 'two'"):
            await traces.trace("same")
        assert (await traces.trace("same", "two")).agent_uuid == "two"
        for words in (["nowhere"], ["nowhere", "two"], ["only here", "two"], ["x", "nobody"]):
            with pytest.raises(NotFound):
                await traces.trace(*words)


async def test_a_turn_that_waits_to_begin_is_found_with_its_agent(tmp_path: Path) -> None:
    async with opened("local", tmp_path) as (bus, _, traces):
        command = Execute(turn="t", messages=[Message(role=Role.user, content="x")])
        # Nobody is woken for it.
        await bus.storage.streams.append(command_subject("a"), encode(command), msg_id="t")
        assert await traces.trace("t", "a") == TurnTrace("a", "t", TurnStatus.queued)
        with pytest.raises(NotFound, match="agent is named"):
            await traces.trace("t")


async def test_turns_that_turns_have_started(tmp_path: Path) -> None:
    async with opened("nats", tmp_path) as (_, agents, traces):
        await agents.create("worker")
        await agents.create("clerk", sub_agents=[SubAgent("work", ["worker"])])
        await agents.create("boss", sub_agents=[SubAgent("ask", ["clerk"])])
        request = asked("boss", call("ask", call("work", "Dig.")), turn_id="t")
        await agents.system.execute(request)
        trace = await traces.trace("t")
        [clerk] = below(trace)
        [worker] = below(clerk)
        assert [one.agent_uuid for one in (trace, clerk, worker)] == ["boss", "clerk", "worker"]
        assert trace.begun_at is not None
        assert clerk.begun_at is not None
        assert worker.begun_at is not None
        assert worker.ended_at is not None
        assert trace.begun_at <= clerk.begun_at <= worker.begun_at <= worker.ended_at
        assert trace.queued_seconds is None
        assert clerk.queued_seconds is not None
        assert clerk.queued_seconds >= 0
        assert trace.spent.tokens > clerk.spent.tokens > worker.spent.tokens > 0
        assert worker.parent is not None
        assert worker.parent.turn_id == clerk.turn_id


@pytest.mark.requirement("turn-trace")
async def test_no_more_turns_than_a_trace_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened("local", tmp_path) as (_, agents, traces):
        for name in "abc":
            await agents.create(name)
        subs = [SubAgent("all", ["a", "b", "c"], kind=Delegation.fan_out)]
        await agents.create("boss", sub_agents=subs)
        tasks = encode([{"agent": name, "message": "Go."} for name in "abc"]).decode()
        text = f'<tool_call>[{{"name": "all", "arguments": {{"tasks": {tasks}}}}}]</tool_call>'
        await agents.system.execute(asked("boss", text, turn_id="t"))
        trace = await traces.trace("t")
        assert sorted(one.agent_uuid for one in below(trace)) == ["a", "b", "c"]
        assert left_out(trace) == 0
        monkeypatch.setattr("ayllu.actors.agents.tracing.MAX_TRACED", 3)
        trace = await traces.trace("t")
        assert (len(below(trace)), left_out(trace)) == (2, 1)
        monkeypatch.setattr("ayllu.actors.agents.tracing.MAX_DEPTH", 0)
        trace = await traces.trace("t")
        assert (len(below(trace)), left_out(trace)) == (0, 3)


@pytest.mark.requirement("turn-trace")
async def test_what_is_gone_or_broken_is_left_out(tmp_path: Path) -> None:
    async with opened("local", tmp_path) as (bus, agents, traces):
        await agents.create("clerk")
        await agents.create("boss", sub_agents=[SubAgent("ask", ["clerk"])])
        await agents.system.execute(asked("boss", call("ask", "Go."), turn_id="t"))
        [clerk] = below(await traces.trace("t"))
        streams, subject = bus.storage.streams, journal_subject("clerk", clerk.turn_id)
        [first] = [await streams.first(JOURNAL.name, subject)]
        assert first is not None
        await streams.purge(JOURNAL.name, subject, before=first.sequence + 1)
        trace = await traces.trace("t")
        assert (below(trace), left_out(trace)) == ([], 1), "its beginning is gone"
        with pytest.raises(InvalidRequest):
            await traces.trace(clerk.turn_id)
        await streams.purge(JOURNAL.name, subject)
        trace = await traces.trace("t")
        assert (below(trace), left_out(trace)) == ([], 1), "all of it is gone"


async def test_a_turn_that_has_not_ended(tmp_path: Path) -> None:
    async with opened("local", tmp_path) as (bus, _, traces):
        await bus.storage.streams.append("ayllu.v1.turn.=zz.t.step", b"[]", msg_id="nobody's")
        payload = encode([began(), said("It is")])
        await bus.storage.streams.append(journal_subject("al", "t"), payload, msg_id="t")
        trace = await traces.trace("t")
        assert trace.status is TurnStatus.running
        assert trace.begun_at is not None
        assert trace.begun_at.timestamp() == AT


@pytest.mark.requirement("turn-trace")
async def test_a_turn_that_was_started_and_has_not_begun(tmp_path: Path) -> None:
    async with opened("local", tmp_path) as (bus, _, traces):
        ask = ToolCall("ask", {"message": "Go."})
        records = [
            began(sub_agents=[SubAgent("ask", ["clerk"])]),
            said("", ask),
            tools(ask),
            Split(at=AT, call=0, tasks=[Task("clerk", "Go.")]),
            Delegated(at=AT, call=0, task=0),
        ]
        await bus.storage.streams.append(journal_subject("al", "t"), encode(records), msg_id="t")
        [child] = below(await traces.trace("t"))
        assert (child.agent_uuid, child.status) == ("clerk", TurnStatus.queued)
