"""Turns of agents outlive every process: executors, models, gateways and the nats-server, killed with -9 or stopped.

The scripted engine stands in for a model: each answer is known, and takes a while.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from support.processes import SCRIPTED, Up, running_up, running_worker
from support.weather import NOW, TOOLS, WeatherActor, calling

from ayllu.actors.agents.desk import LEASE_BUCKET
from ayllu.actors.leases import lease_bucket
from ayllu.bus import connect as connect_bus
from ayllu.bus.bus import Bus
from ayllu.bus.client import client
from ayllu.bus.server import embedded_server
from ayllu.bus.service import serve
from ayllu.client import Stack, connect
from ayllu.schemas import (
    AgenticSystem,
    AgenticSystemCreateRequest,
    AgenticSystemExecuteRequest,
    AgentTurns,
    AylluError,
    Message,
    Role,
    ToolExecutionStep,
    Turn,
    TurnEvent,
    TurnStatus,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

COUNT = 150
SLOW = f"""
[[models]]
name = "slow"
engine = "scripted"
source = "slow:{COUNT}"
slots = 64
"""
ANSWER = " ".join(str(number) for number in range(1, COUNT + 1))


def asked(agent: str, turn: str) -> AgenticSystemExecuteRequest:
    message = Message(role=Role.user, content="Count.")
    return AgenticSystemExecuteRequest(agent, [message], turn_id=turn)


async def create(api: AgenticSystem, agent: str = "al", **config: object) -> None:
    """Create an agent, as soon as everything that it needs is there."""
    request = AgenticSystemCreateRequest(
        uuid=agent,
        instructions="Count.",
        model="slow",
        **config,  # type: ignore[arg-type]
    )
    with anyio.fail_after(20):
        while True:
            try:
                await api.create(request)
            except AylluError as error:
                assert error.retryable, error.info
                await anyio.sleep(0.1)
            else:
                return


def check(events: list[TurnEvent], turn: Turn) -> Turn:
    """Check what holds after any fault, by what a client saw, and return the turn."""
    assert [event.index for event in events] == list(range(len(events)))
    assert all(event.recovered for event in events)
    texts = [event.event.response_text_delta or "" for event in events if event.event is not None]
    assert "".join(texts) == ANSWER
    assert turn.index == len(events)
    assert turn.status is TurnStatus.completed
    assert turn.response_message is not None
    assert turn.response_message.content == ANSWER
    return turn


@pytest.mark.requirement("agent-faults")
@pytest.mark.parametrize("victim", ["worker agents", "worker inference", "worker gateway"])
async def test_a_process_is_killed_in_mid_sentence(tmp_path: Path, victim: str) -> None:
    with running_up(tmp_path / "data", SCRIPTED + SLOW) as up:
        async with connect(up.url) as stack:
            await create(stack.agentic_system)
            events: list[TurnEvent] = []
            with anyio.fail_after(40):
                async with stack.agent("al").turn("Count.") as turn:
                    async for event in turn:
                        events.append(event)
                        if len(events) == 20:
                            await anyio.to_thread.run_sync(up.kill_child, victim)
            whole = check(events, turn.result)
            assert len(whole.steps) == 1
            # Who comes later sees the same; the agent goes on.
            again = stack.agentic_system.turn.events("al", whole.turn_id)
            assert [event async for event in again][:-1] == events
            async with stack.agent("al").turn("Count.") as turn:
                check([event async for event in turn], turn.result)
        assert up.stop() == 0


@pytest.mark.requirement("agent-faults")
async def test_the_nats_server_is_killed_under_load(tmp_path: Path) -> None:
    """What was told may be lost with its memory; each turn that was accepted ends once, with its whole answer."""
    with running_up(tmp_path / "data", SCRIPTED + SLOW) as up:
        async with connect(up.url) as stack:
            agents = [f"agent {number}" for number in range(8)]
            for agent in agents:
                await create(stack.agentic_system, agent)
            ended: dict[str, Turn] = {}

            async def take(agent: str) -> None:
                async with stack.agent(agent).turn("Count.") as turn:
                    async for _ in turn:
                        pass
                    ended[agent] = turn.result

            with anyio.fail_after(60):
                async with anyio.create_task_group() as tasks:
                    for agent in agents:
                        tasks.start_soon(take, agent)
                    await anyio.sleep(1)
                    await anyio.to_thread.run_sync(up.kill_child, "nats-server")
            assert set(ended) == set(agents)
            for agent, turn in ended.items():
                assert turn.response_message is not None
                assert turn.response_message.content == ANSWER
                listed = [one async for one in stack.agentic_system.turn.list(agent)]
                assert [(one.turn_id, one.status) for one in listed] == [
                    (turn.turn_id, TurnStatus.completed)
                ]
        assert up.stop() == 0


@asynccontextmanager
async def two_executors(folder: Path) -> AsyncIterator[tuple[Bus, list[int]]]:
    """Run a model and two agent workers on an external bus."""
    config = folder / "ayllu.toml"
    config.write_text(SCRIPTED + SLOW)
    options = ["--config", str(config)]
    async with embedded_server(folder / "nats") as server:
        with (
            running_worker(["inference", *options], server.url),
            running_worker(["agents", *options], server.url) as one,
            running_worker(["agents", *options], server.url) as two,
        ):
            async with connect_bus(server.url) as bus:
                yield bus, [one.pid, two.pid]


@pytest.mark.requirement("agent-faults")
async def test_an_executor_is_stopped_for_longer_than_its_lease(tmp_path: Path) -> None:
    """Another one takes over; when the stopped one goes on, nobody sees what it writes."""
    async with two_executors(tmp_path) as (bus, pids):
        await create(client(AgenticSystem, bus))
        leases = await lease_bucket(bus, LEASE_BUCKET)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_execute, bus)
                while (state := await _state(bus)) is None or state.index < 10:
                    await anyio.sleep(0.02)
                assert await leases.get("al") is not None
                # Which of the two works is not told: the one that used more processor time.
                pid = max(pids, key=_ticks)
                os.kill(pid, signal.SIGSTOP)
                try:
                    while (state := await _state(bus)) is None or state.ended_at is None:
                        await anyio.sleep(0.1)
                finally:
                    os.kill(pid, signal.SIGCONT)
                assert state.response_message is not None
                assert state.response_message.content == ANSWER
                await anyio.sleep(1)  # The stopped one wakes up and wants to go on.
                assert await _state(bus) == state
                events = [e async for e in client(AgentTurns, bus).events("al", "t")]
                check(events[:-1], state)
                tasks.cancel_scope.cancel()


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def _execute(bus: Bus) -> None:
    while True:
        try:
            await client(AgenticSystem, bus, timeout=20).execute(asked("al", "t"))
        except AylluError as error:
            assert error.retryable, error.info
        else:
            return


async def _state(bus: Bus) -> Turn | None:
    try:
        return await client(AgentTurns, bus, timeout=1).get("al", "t")
    except AylluError:
        return None


@pytest.mark.requirement("agent-faults")
async def test_an_executor_is_killed_while_a_tool_runs(tmp_path: Path) -> None:
    """A call that is not idempotent is not made again; the model is told that its outcome is unknown."""
    with running_up(tmp_path / "data", SCRIPTED + SLOW) as up:
        weather = WeatherActor(held=True)
        async with (
            connect_bus(up.bus_url) as bus,
            connect(up.url) as stack,
            anyio.create_task_group() as tasks,
        ):
            await tasks.start(serve, bus, weather)
            await _tool_turn(stack, up, weather)
            tasks.cancel_scope.cancel()
        assert up.stop() == 0


async def _tool_turn(stack: Stack, up: Up, weather: WeatherActor) -> None:
    # The model repeats what the user says: the call of a tool.
    request = AgenticSystemCreateRequest(
        uuid="al",
        instructions="Repeat.",
        model="echo",
        available_tools=TOOLS,
        executable_tools={"weather.now"},
        max_steps=2,
    )
    await stack.agentic_system.create(request)
    with anyio.fail_after(40):
        async with stack.agent("al").turn(calling(NOW)) as turn:
            async for event in turn:
                if event.event is not None and event.event.step_type == "tool_execution":
                    await weather.asked.wait()
                    await anyio.to_thread.run_sync(up.kill_child, "worker agents")
                    weather.gate.set()
                    break
        async with stack.agent("al").follow(turn.turn_id) as followed:
            state = await followed.wait()
    assert len(weather.keys) == 1
    [step] = [step for step in state.steps if isinstance(step, ToolExecutionStep)]
    assert "not known" in str(step.tool_responses[0].content)
