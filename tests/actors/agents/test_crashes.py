"""An executor dies at every boundary of the journal, and between journal and deltas: nothing is lost, nothing is done twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

import anyio
import pytest
from anyio.abc import TaskStatus
from support.agents import Agents, asked, running_agents
from support.teams import Part, asks, call, calls, echoes, parts
from support.weather import CONFIG, FORECAST, NOW, TAIL, TOOLS, WeatherActor, weather_script
from support.word_shield import WordShield, shield

from ayllu.actors.agents.executor import Executor
from ayllu.actors.engines.scripted import Script, Step
from ayllu.actors.events import EVENTS
from ayllu.actors.shields.actor import ShieldsActor
from ayllu.bus.bus import Bus, local_bus
from ayllu.bus.deadletters import letters
from ayllu.bus.durable import Appended, Storage, Streams
from ayllu.schemas import (
    ApproveRequest,
    AylluError,
    Delegation,
    ModelInferenceStep,
    NotFound,
    SubAgent,
    ToolDefinition,
    ToolExecutionStep,
    Turn,
    TurnEnded,
    TurnEvent,
    TurnStatus,
    decode,
    encode,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("turn-survives-executors")]


class Died(BaseException):
    """The executor is no more."""


class Doomed:
    """Streams that let their executor die at the n-th write of a turn, before or after it is stored.

    With ``all_`` whatever it stores counts: also what turns ask of others, and tell them.

    Attributes:
        writes: how many there were.
    """

    def __init__(self, streams: Streams, at: int, *, stored: bool, all_: bool) -> None:
        self._streams = streams
        self._all = all_
        self._at = at
        self._stored = stored
        self.writes = 0
        self.died = anyio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._streams, name)

    async def _write(self, write: Any) -> Any:
        self.writes += 1
        if self.writes < self._at:
            return await write()
        if self.writes == self._at and self._stored:
            await write()
        self.died.set()
        raise Died

    async def append(self, subject: str, payload: bytes, **options: Any) -> Appended:
        async def write() -> Appended:
            return await self._streams.append(subject, payload, **options)

        if not self._all and ".turn." not in subject and not subject.endswith(".history"):
            return await write()
        return cast(Appended, await self._write(write))

    async def post(self, subject: str, payload: bytes) -> None:
        await self._write(lambda: self._streams.post(subject, payload))


@dataclass
class DoomedStorage:
    streams: Any
    storage: Storage

    async def key_value(self, bucket: str, *, ttl: float = 0.0) -> Any:
        return await self.storage.key_value(bucket, ttl=ttl)

    async def objects(self, bucket: str, **options: Any) -> Any:
        return await self.storage.objects(bucket, **options)


@asynccontextmanager
async def dying_executor(
    bus: Bus, at: int, *, stored: bool, all_: bool = False
) -> AsyncIterator[Doomed]:
    """Run an executor until it dies."""
    doomed = Doomed(bus.storage.streams, at, stored=stored, all_=all_)
    mortal = replace(bus, storage=cast(Storage, DoomedStorage(doomed, bus.storage)))

    async def run(*, task_status: TaskStatus[None]) -> None:
        try:
            await Executor(mortal).run(task_status=task_status)
        except* Died:
            pass

    async with anyio.create_task_group() as tasks:
        await tasks.start(run)
        yield doomed
        tasks.cancel_scope.cancel()


def check(events: list[TurnEvent], keys: list[str], once: int) -> None:
    """Check what holds after any fault: one end, contiguous events, the whole text, each call executed once."""
    assert [event.index for event in events] == list(range(len(events)))
    assert [event.turn is not None for event in events] == [False] * (len(events) - 1) + [True]
    turn = events[-1].turn
    assert turn is not None
    assert turn.status is TurnStatus.completed, turn.error
    assert turn.response_message is not None
    texts = [
        event.event.response_text_delta
        for event in events
        if event.event is not None and event.event.response_text_delta
    ]
    step = turn.steps[-1]
    assert isinstance(step, ModelInferenceStep)
    assert step.text == turn.response_message.content == "".join(texts)
    assert len(set(keys)) == once


async def died_or_done(agents: Agents, doomed: Doomed, turn: str) -> bool:
    """Wait until an executor has died, or has done all that a turn needs; return which."""
    while not doomed.died.is_set():
        history = await agents.bus.storage.streams.last("AGENTS", "ayllu.v1.agent.al.history")
        if history is not None and encode(turn) in history.payload:
            return False
        await anyio.sleep(0.001)
    return True


async def follow_through(agents: Agents, turn: str) -> list[TurnEvent]:
    while True:
        try:
            return await agents.events("al", turn)
        except NotFound:
            await anyio.sleep(0.001)  # It is not accepted yet.


GUARDED = {
    **CONFIG,
    "available_tools": [
        ToolDefinition(tool.tool_name, input_shields=[shield()], output_shields=[shield()])
        for tool in TOOLS
    ],
    "input_shields": [shield()],
    "output_shields": [shield()],
    "require_approval": {"weather.now"},
}
"""Shields that withhold everywhere, and a call that waits for a person."""


@pytest.mark.parametrize("stored", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("calls", "config"),
    [((), CONFIG), ((NOW, FORECAST), CONFIG), ((NOW, FORECAST), GUARDED)],
    ids=["answer", "tools", "guarded"],
)
async def test_at_every_write(calls: tuple[str, ...], config: dict[str, Any], stored: bool) -> None:
    script = cast(Script, weather_script(*calls))
    at, died = 0, True
    events: list[TurnEvent] = []
    scope = anyio.CancelScope()
    async with local_bus() as bus:
        weather = WeatherActor()
        shields = ShieldsActor([WordShield()])
        async with running_agents(bus, weather, shields, script=script, executors=0) as agents:
            await agents.create("al", **config)
            agents.tasks.start_soon(approve_all, agents)
            while died:
                at += 1
                name = f"turn {at}"
                weather.keys.clear()
                with anyio.fail_after(20):
                    async with anyio.create_task_group() as tasks:
                        async with dying_executor(bus, at, stored=stored) as doomed:
                            tasks.start_soon(accept, agents, name)
                            died = await died_or_done(agents, doomed, name)
                        _, scope = await agents.executor()
                        events = await follow_through(agents, name)
                    scope.cancel()
                check_text(events)
                check(events, weather.keys, len(set(weather.keys)))
                check_tools(events, weather.keys)
                history = [one async for one in agents.turns.list("al")]
                assert len(history) == at
            # The whole path has so many writes: begin, tokens, steps, answers, end, history.
            assert at > (10 if calls else 4)


async def approve_all(agents: Agents) -> None:
    """Let all calls run that wait, whatever dies meanwhile."""
    while True:
        async for one in agents.turns.approvals("al"):
            with suppress(AylluError):
                await agents.turns.approve(ApproveRequest("al", one.turn_id, one.call_id))
        await anyio.sleep(0.005)


async def accept(agents: Agents, name: str) -> None:
    """Ask for a turn, and stay with it: its reader must see the same as everybody else."""
    events = agents.system.stream_execute(asked("al", "How is it?", turn_id=name))
    seen = [event async for event in events]
    known = await agents.events("al", name)
    assert seen == [event.event for event in known[:-1]]


def check_text(events: list[TurnEvent]) -> None:
    turn = events[-1].turn
    assert turn is not None
    assert turn.response_message is not None
    assert str(turn.response_message.content).endswith(TAIL)


def check_tools(events: list[TurnEvent], keys: list[str]) -> None:
    """A call that is not idempotent is made once at most; if it is not known whether it was, the model is told."""
    turn = events[-1].turn
    assert turn is not None
    for step in turn.steps:
        if isinstance(step, ToolExecutionStep):
            now, forecast = step.tool_responses
            # The keys of one step end in the place of the call.
            assert sum(key.endswith("/0") for key in keys) <= 1
            assert "sunny" in str(now.content) or "not known" in str(now.content)
            assert forecast.content == "2 days of sun in Cusco"


def lead(asked: str, answers: Sequence[str]) -> Sequence[Step] | str:
    """A part: asks two at once."""
    tasks = [{"message": f"{asked} {number}"} for number in range(2)]
    return answers[0] if answers else calls(call("ask", tasks=tasks))


async def tree(agents: Agents, agent: str, turn: str) -> list[Turn]:
    """Return a turn and all below it."""
    found = [await agents.turns.get(agent, turn)]
    for child in found[0].children:
        found += await tree(agents, child.agent_uuid, child.turn_id)
    return found


@pytest.mark.requirement("team-survives")
@pytest.mark.parametrize(
    ("kind", "stored"),
    [(Delegation.call, False), (Delegation.call, True), (Delegation.hand_off, True)],
    ids=["call-before", "call-after", "hand-off-after"],
)
async def test_at_every_write_of_a_tree(kind: Delegation, stored: bool) -> None:
    handed = kind is Delegation.hand_off
    heard = "[boss hands the conversation over to you: x]" if handed else "x"
    answers = [{"agent": "worker", "answer": f"{heard} {number}"} for number in range(2)]
    said = encode(answers).decode()
    played: dict[str, Part] = {"boss": asks("ask"), "lead": lead, "worker": echoes}
    at, died = 0, True
    scope = anyio.CancelScope()
    async with (
        local_bus() as bus,
        running_agents(bus, script=parts(played), executors=0) as agents,
    ):
        await agents.create("worker", instructions="worker")
        pair = SubAgent("ask", ["worker"], kind=Delegation.fan_out)
        await agents.create("lead", instructions="lead", sub_agents=[pair])
        await agents.create(
            "boss", instructions="boss", sub_agents=[SubAgent("ask", ["lead"], kind)]
        )
        while died:
            at += 1
            name = f"turn {at}"
            with anyio.fail_after(20):
                async with anyio.create_task_group() as tasks:
                    async with dying_executor(bus, at, stored=stored, all_=True) as doomed:
                        request = asked("boss", "x", turn_id=name, detached=handed)
                        tasks.start_soon(agents.system.execute, request)
                        died = await died_or_told(agents, doomed, name)
                    _, scope = await agents.executor()
                scope.cancel()
            turns = await tree(agents, "boss", name)
            assert [turn.status for turn in turns] == [TurnStatus.completed] * 4
            assert turns[0].response_message is not None
            assert turns[0].response_message.content == (said if handed else f"so {said}")
            assert [turn.spent.steps for turn in turns] == [5 if handed else 6, 4, 1, 1]
            told = [ended async for ended in ends(bus)]
            assert sorted(told) == sorted(set(told))
            assert len(told) == 4 * at
        for agent, each in (("boss", 1), ("lead", 1), ("worker", 2)):
            assert len([one async for one in agents.turns.list(agent, 1000)]) == each * at
        assert await letters(bus.storage) == []
    assert at > 40


async def ends(bus: Bus) -> AsyncIterator[str]:
    """Yield which ends of turns were told."""
    async with bus.storage.streams.replay(EVENTS.name) as entries:
        async for entry in entries:
            yield decode(entry.payload, TurnEnded).turn_id


async def died_or_told(agents: Agents, doomed: Doomed, turn: str) -> bool:
    """Wait until an executor has died, or has told the end of a turn; return which."""
    while not doomed.died.is_set():
        if turn in [ended async for ended in ends(agents.bus)]:
            return False
        await anyio.sleep(0.001)
    return True
