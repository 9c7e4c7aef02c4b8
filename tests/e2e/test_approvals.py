"""Calls that wait for people, with real processes: the commands, the terminal, and kill -9 of gateway and executor."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import pytest
from support.processes import AYLLU, Up, on_a_terminal, run_ayllu, running_up
from support.weather import FORECAST, NOW, TOOLS, WeatherActor, calling

from ayllu.bus import connect as connect_bus
from ayllu.bus.service import serve
from ayllu.client import FollowedTurn, Stack, connect
from ayllu.schemas import (
    AgenticSystemCreateRequest,
    Approval,
    ApprovalDecision,
    AylluError,
    ToolExecutionStep,
    TurnEvent,
    TurnStatus,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

T = TypeVar("T")

PUNO = NOW.replace("Cusco", "Puno")


@asynccontextmanager
async def deployment(folder: Path) -> AsyncIterator[tuple[Up, Stack, WeatherActor]]:
    """Run everything, with an own actor whose tools an agent may only call after a decision."""
    with running_up(folder / "data") as up:
        weather = WeatherActor()
        async with connect_bus(up.bus_url) as bus, anyio.create_task_group() as tasks:
            await tasks.start(serve, bus, weather)
            async with connect(up.url) as stack:
                # The model repeats what the user says: calls of tools.
                request = AgenticSystemCreateRequest(
                    uuid="al",
                    instructions="Repeat.",
                    model="echo",
                    available_tools=TOOLS,
                    executable_tools={"weather.now", "weather.forecast"},
                    require_approval={"weather.now"},
                    max_steps=2,
                )
                await stack.agentic_system.create(request)
                with anyio.fail_after(90):
                    yield up, stack, weather
            tasks.cancel_scope.cancel()
        assert up.stop() == 0


async def pending(stack: Stack, count: int) -> list[Approval]:
    """Wait until so many calls wait for a decision."""

    async def look() -> list[Approval]:
        return [one async for one in stack.agentic_system.turn.approvals()]

    while len(found := await surely(look)) != count:
        await anyio.sleep(0.05)
    return found


async def surely(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again while what was killed is not back: a decision may be sent again."""
    while True:
        try:
            return await ask()
        except AylluError as error:
            assert error.retryable, error.info
            await anyio.sleep(0.05)


async def collect(turn: FollowedTurn, events: list[TurnEvent]) -> None:
    async for event in turn:
        events.append(event)


@pytest.mark.requirement("agent-approvals", "agent-faults")
async def test_gateway_and_executor_are_killed_while_calls_wait(tmp_path: Path) -> None:
    async with deployment(tmp_path) as (up, stack, weather):
        events: list[TurnEvent] = []
        async with (
            stack.agent("al").turn(calling(NOW, PUNO, FORECAST)) as turn,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(collect, turn, events)
            before = await pending(stack, 2)
            await anyio.to_thread.run_sync(up.kill_child, "worker agents")
            await anyio.to_thread.run_sync(up.kill_child, "worker gateway")
            assert await pending(stack, 2) == before
            first = await surely(partial(turn.approve, before[0].call_id))
            assert first.decision is ApprovalDecision.approve
            await anyio.to_thread.run_sync(up.kill_child, "worker agents")
            [left] = await pending(stack, 1)
            assert left == before[1]
            await surely(partial(turn.deny, left.call_id, "too far"))
        state = turn.result
        assert state.status is TurnStatus.completed
        [step] = [step for step in state.steps if isinstance(step, ToolExecutionStep)]
        cusco, puno, forecast = (str(one.content) for one in step.tool_responses)
        # It may have been killed in the moment when it wrote the answer.
        assert cusco == "sunny in Cusco" or "not known" in cusco
        assert puno == "The call was not approved: too far"
        assert forecast == "2 days of sun in Cusco"
        assert [event.index for event in events] == list(range(len(events)))
        assert sum(key.endswith("/0") for key in weather.keys) == 1
        assert sum(key.endswith("/1") for key in weather.keys) == 0


@pytest.mark.requirement("approval-commands")
async def test_commands_and_the_terminal(tmp_path: Path) -> None:
    async with deployment(tmp_path) as (up, stack, weather):

        def ayllu(*words: str) -> subprocess.CompletedProcess[str]:
            done = run_ayllu("approvals", "--url", up.url, *words)
            assert "Traceback" not in done.stderr
            return done

        async def run(*words: str) -> subprocess.CompletedProcess[str]:
            return await anyio.to_thread.run_sync(ayllu, *words)

        assert (await run()).stdout == ""
        async with (
            stack.agent("al").turn(calling(NOW, PUNO)) as turn,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(collect, turn, [])
            cusco, puno = await pending(stack, 2)
            listed = (await run()).stdout.splitlines()
            assert [line.split("\t")[2] for line in listed] == [cusco.call_id, puno.call_id]
            assert listed[0].endswith('weather.now {"city":"Cusco"}')
            [one, _] = (await run("list", "--agent", "al", "--json")).stdout.splitlines()
            assert json.loads(one)["call_id"] == cusco.call_id
            names = ("al", turn.turn_id, cusco.call_id)
            wrong = await run("approve", *names, "--arguments", '{"town": "Lima"}')
            assert (wrong.returncode, "city" in wrong.stderr) == (2, True)
            done = await run("approve", *names, "--arguments", '{"city": "Lima"}')
            assert (done.returncode, done.stdout) == (0, "approve\n")
            late = await run("deny", *names)
            assert late.returncode == 1
            assert "approved with other arguments already" in late.stderr
            done = await run("deny", "al", turn.turn_id, puno.call_id, "--reason", "no")
            assert (done.returncode, done.stdout) == (0, "deny\n")
        shown = await anyio.to_thread.run_sync(
            lambda: run_ayllu("turns", "al", "follow", turn.turn_id, "--url", up.url).stdout
        )
        assert '  ? weather.now {"city":"Cusco"} waits for approval' in shown
        assert "  = weather.now was approved with other arguments" in shown
        assert "  = weather.now was denied: no" in shown
        await _decide_in_the_terminal(up, weather)


async def _decide_in_the_terminal(up: Up, weather: WeatherActor) -> None:
    """Whoever chats is asked, and answers there."""
    before = len(weather.keys)
    command = [AYLLU, "chat", "--url", up.url, "--agent", "al", calling(NOW, PUNO)]
    answers = [("run it?", "y\n"), ("run it?", "not there\n")]
    _, text = await anyio.to_thread.run_sync(
        lambda: on_a_terminal(command, whole=True, answers=answers)
    )
    assert "weather.now was approved" in text
    assert "weather.now was denied: not there" in text
    assert len(weather.keys) == before + 1
