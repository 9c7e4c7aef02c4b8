"""Calls that wait for people: decided, listed, expired, and carried over lost executors."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, cast

import anyio
import pytest
from support.agents import Agents, asked, running_agents
from support.weather import CONFIG, FORECAST, NOW, TAIL, WeatherActor, weather_script

from ayllu.actors.agents import approvals
from ayllu.actors.agents.entries import standing_records
from ayllu.actors.agents.plan import MAX_ATTEMPTS
from ayllu.actors.agents.streams import JOURNAL, journal_subject, wake_subject
from ayllu.actors.engines.scripted import Script
from ayllu.bus.bus import Bus, connect, local_bus
from ayllu.bus.deadletters import letters
from ayllu.schemas import (
    AgenticSystemExecuteRequest,
    Approval,
    ApprovalDecision,
    ApproveRequest,
    AylluError,
    Conflict,
    InvalidRequest,
    NotFound,
    ToolExecutionStep,
    Turn,
    TurnStatus,
    WhenBusy,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("agent-approvals")]

PUNO = NOW.replace("Cusco", "Puno")
ICA = NOW.replace("Cusco", "Ica")
ASKING: dict[str, Any] = {**CONFIG, "require_approval": {"weather.now"}}
APPROVE, DENY = ApprovalDecision.approve, ApprovalDecision.deny
_numbers = itertools.count()


@pytest.fixture(params=["local", "here", "nats"])
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Return the kind of the bus, and its URL: within the process, with an executor at hand, or a nats-server."""
    return request.param, request.getfixturevalue("nats_url") if request.param == "nats" else ""


@asynccontextmanager
async def opened(kind: tuple[str, str]) -> AsyncIterator[Bus]:
    async with connect(kind[1]) if kind[1] else local_bus() as bus:
        with anyio.fail_after(40):
            yield bus


@asynccontextmanager
async def asking(
    bus: Bus, *calls: str, weather: WeatherActor | None = None, local: bool = False, **config: Any
) -> AsyncIterator[tuple[Agents, str]]:
    """Serve an agent whose calls of ``weather.now`` wait for decisions."""
    script = cast(Script, weather_script(*calls))
    name = f"asking {os.getpid()} {next(_numbers)}"
    actor = weather or WeatherActor()
    async with running_agents(bus, actor, script=script, local=local) as agents:
        await agents.create(name, **{**ASKING, **config})
        agents.tasks.start_soon(begin, agents, name)
        yield agents, name


async def begin(agents: Agents, name: str) -> None:
    await begin_other(agents, asked(name, "How is it?", turn_id="t"))


async def waiting(agents: Agents, name: str, count: int = 1) -> list[Approval]:
    """Wait until so many calls wait for a decision, and nothing else runs."""
    while True:
        try:
            turn = await agents.turns.get(name, "t")
        except NotFound:
            turn = None
        if turn is not None and turn.status is TurnStatus.waiting:
            assert len(turn.approvals) == count
            return turn.approvals
        await anyio.sleep(0.005)


async def ended(agents: Agents, name: str) -> Turn:
    while True:
        try:
            events = await agents.events(name, "t")
        except NotFound:
            await anyio.sleep(0.005)  # It is not accepted yet.
        else:
            break
    assert [event.index for event in events] == list(range(len(events)))
    found = events[-1].turn
    assert found is not None
    return found


def answers(turn: Turn) -> list[str]:
    [step] = [step for step in turn.steps if isinstance(step, ToolExecutionStep)]
    return [str(response.content) for response in step.tool_responses]


def about(
    approval: Approval, decision: ApprovalDecision = APPROVE, **fields: Any
) -> ApproveRequest:
    return ApproveRequest(
        approval.agent_uuid, approval.turn_id, approval.call_id, decision, **fields
    )


async def test_parallel_calls_with_mixed_decisions(kind: tuple[str, str]) -> None:
    weather = WeatherActor()
    async with (
        opened(kind) as bus,
        asking(bus, NOW, PUNO, FORECAST, ICA, weather=weather, local=kind[0] == "here") as (
            agents,
            name,
        ),
    ):
        cusco, puno, ica = await waiting(agents, name, 3)
        assert len(weather.keys) == 1  # The forecast needs no decision.
        listed = [one async for one in agents.turns.approvals(name)]
        assert listed == [cusco, puno, ica]
        assert [one async for one in agents.turns.approvals()] == listed
        told = await agents.turns.approve(about(puno, DENY, reason="too far"))
        assert (told.decision, told.reason, told.changed) == (DENY, "too far", False)
        changed = await agents.turns.approve(about(cusco, arguments={"city": "Lima"}))
        assert changed.changed
        assert changed.tool_call.arguments == {"city": "Lima"}
        assert [one.call_id for one in await waiting(agents, name)] == [ica.call_id]
        await agents.turns.approve(about(ica))
        turn = await ended(agents, name)
    assert turn.status is TurnStatus.completed
    note = '[Whoever approved the call changed its arguments to {"city":"Lima"}]'
    assert answers(turn) == [
        f"{note}\nsunny in Lima",
        "The call was not approved: too far",
        "2 days of sun in Cusco",
        "sunny in Ica",
    ]
    assert len(weather.keys) == len(set(weather.keys)) == 3
    [step] = [step for step in turn.steps if isinstance(step, ToolExecutionStep)]
    assert step.tool_calls[0].arguments == {"city": "Lima"}
    assert turn.approvals == []
    assert str(turn.response_message.content if turn.response_message else "").endswith(TAIL)


async def test_the_first_decision_holds(kind: tuple[str, str]) -> None:
    async with (
        opened(kind) as bus,
        asking(bus, NOW, PUNO, local=kind[0] == "here") as (agents, name),
    ):
        call, other = await waiting(agents, name, 2)
        first = await agents.turns.approve(about(call))
        assert await agents.turns.approve(about(call)) == first
        for wrong in (about(call, DENY), about(call, arguments={"city": "Lima"})):
            with pytest.raises(Conflict, match="approved already"):
                await agents.turns.approve(wrong)
        with pytest.raises(InvalidRequest, match="city"):
            await agents.turns.approve(about(other, arguments={"town": "Lima"}))
        with pytest.raises(InvalidRequest, match="denied has none"):
            await agents.turns.approve(about(other, DENY, arguments={"city": "Lima"}))
        with pytest.raises(NotFound):
            await agents.turns.approve(ApproveRequest(name, "t", "other", APPROVE))
        with pytest.raises(NotFound):
            await agents.turns.approve(ApproveRequest(name, "u", call.call_id, APPROVE))
        with pytest.raises(NotFound):
            _ = [one async for one in agents.turns.approvals("nobody")]
        await agents.turns.approve(about(other, DENY))
        with pytest.raises(Conflict, match="denied already"):
            await agents.turns.approve(about(other))
        turn = await ended(agents, name)
    assert answers(turn) == ["sunny in Cusco", "The call was not approved."]


async def test_two_people_decide_at_once() -> None:
    weather = WeatherActor()
    async with opened(("local", "")) as bus, asking(bus, NOW, weather=weather) as (agents, name):
        [call] = await waiting(agents, name)
        came: list[object] = []

        async def decide(decision: ApprovalDecision) -> None:
            try:
                came.append((await agents.turns.approve(about(call, decision))).decision)
            except Conflict:
                came.append("conflict")

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(decide, APPROVE)
                tasks.start_soon(decide, DENY)
        turn = await ended(agents, name)
    [held] = {one for one in came if one != "conflict"}
    assert came.count(held) == came.count("conflict") == 3
    assert len(weather.keys) == (held is APPROVE)
    assert answers(turn) == ["sunny in Cusco" if held is APPROVE else "The call was not approved."]


async def test_nobody_decides(kind: tuple[str, str]) -> None:
    weather = WeatherActor()
    async with (
        opened(kind) as bus,
        asking(bus, NOW, weather=weather, local=kind[0] == "here", approval_timeout=0.4) as (
            agents,
            name,
        ),
    ):
        turn = await ended(agents, name)
    assert answers(turn) == ["The call was not approved: nobody decided within 0.4 s"]
    assert turn.status is TurnStatus.completed
    assert weather.keys == []


async def test_a_decision_while_others_run_is_acted_upon_at_once() -> None:
    weather = WeatherActor(held=True)
    async with (
        opened(("local", "")) as bus,
        asking(bus, FORECAST, NOW, weather=weather) as (agents, name),
    ):
        await weather.asked.wait()
        turn = await agents.turns.get(name, "t")
        assert turn.status is TurnStatus.running
        weather.asked = anyio.Event()
        await agents.turns.approve(about(turn.approvals[0]))
        await weather.asked.wait()
        assert len(weather.keys) == 2
        weather.gate.set()
        assert (await ended(agents, name)).status is TurnStatus.completed


async def test_a_lost_executor_and_one_that_comes_later(kind: tuple[str, str]) -> None:
    """What was decided while there was none is done by the next one, and what was done is not done again."""
    weather = WeatherActor()
    script = cast(Script, weather_script(FORECAST, NOW, PUNO))
    name = f"asking {os.getpid()} {next(_numbers)}"
    async with opened(kind) as bus:
        async with running_agents(bus, weather, script=script, executors=0) as agents:
            _, scope = await agents.executor()
            await agents.create(name, **ASKING)
            agents.tasks.start_soon(begin, agents, name)
            cusco, puno = await waiting(agents, name, 2)
            scope.cancel()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(agents.turns.approve, about(cusco))
                tasks.start_soon(agents.turns.approve, about(puno, DENY))
                await anyio.wait_all_tasks_blocked()
                assert (await agents.turns.get(name, "t")).status is TurnStatus.waiting
                await agents.executor()
            turn = await ended(agents, name)
    assert answers(turn) == [
        "2 days of sun in Cusco",
        "sunny in Cusco",
        "The call was not approved.",
    ]
    assert len(weather.keys) == 2


async def test_a_turn_that_waits_holds_nothing() -> None:
    """An executor with one slot works for others meanwhile; the journal does not grow."""
    script = cast(Script, weather_script(NOW))
    async with opened(("local", "")) as bus:
        async with running_agents(bus, WeatherActor(), script=script, executors=0) as agents:
            await agents.executor(slots=1)
            for name in ("a", "b", "c"):
                await agents.create(name, **ASKING)
                agents.tasks.start_soon(begin, agents, name)
            calls = [(await waiting(agents, name))[0] for name in ("a", "b", "c")]
            assert len([one async for one in agents.turns.approvals()]) == 3
            before = await agents.turns.get("a", "t")
            for call in reversed(calls):
                await agents.turns.approve(about(call))
            turns = [await ended(agents, name) for name in ("a", "b", "c")]
    assert before.epoch == 1
    assert {turn.status for turn in turns} == {TurnStatus.completed}


async def test_an_executor_lets_go_of_a_turn_that_waits_already() -> None:
    """One that finds such a turn, whose executor was lost, looks at it once, and is free for others."""
    script = cast(Script, weather_script(NOW))
    async with opened(("local", "")) as bus:
        async with running_agents(bus, WeatherActor(), script=script, executors=0) as agents:
            _, scope = await agents.executor()
            await agents.create("a", **ASKING)
            agents.tasks.start_soon(begin, agents, "a")
            [call] = await waiting(agents, "a")
            scope.cancel()
            await agents.executor(slots=1)
            # It is woken for nothing.
            await agents.bus.storage.streams.append(wake_subject("a"), b"", msg_id="wake again")
            await agents.create("b", **ASKING)
            agents.tasks.start_soon(begin, agents, "b")
            [other] = await waiting(agents, "b")
            await agents.turns.approve(about(other))
            assert (await ended(agents, "b")).status is TurnStatus.completed
            assert await waiting(agents, "a") == [call]
            await agents.turns.approve(about(call))
            assert (await ended(agents, "a")).status is TurnStatus.completed


@pytest.mark.parametrize("how", ["cancel", "delete", "interrupt"])
async def test_a_turn_that_waits_is_ended(how: str) -> None:
    weather = WeatherActor()
    async with opened(("local", "")) as bus, asking(bus, NOW, weather=weather) as (agents, name):
        [call] = await waiting(agents, name)
        if how == "cancel":
            turn = await agents.turns.cancel(name, "t", "enough")
        elif how == "delete":
            await agents.system.delete(name)
            turn = await ended(agents, name)
        else:
            other = asked(name, "And now?", turn_id="u", when_busy=WhenBusy.interrupt)
            agents.tasks.start_soon(begin_other, agents, other)
            turn = await ended(agents, name)
        assert turn.status is TurnStatus.cancelled
        assert answers(turn) == ["The turn was cancelled."]
        with pytest.raises(Conflict):
            await agents.turns.approve(about(call))
    assert weather.keys == []


async def begin_other(agents: Agents, request: AgenticSystemExecuteRequest) -> None:
    with suppress(AylluError):  # Some of these turns are cancelled.
        await agents.system.execute(request)


async def test_calls_that_cannot_be_run_are_not_asked_about() -> None:
    wrong = '{"name": "weather.now", "arguments": {"town": "Cusco"}}'
    async with opened(("local", "")) as bus, asking(bus, wrong) as (agents, name):
        turn = await ended(agents, name)
    assert "arguments are wrong" in answers(turn)[0]


async def test_a_busy_agent_that_waits_refuses_and_queues() -> None:
    async with opened(("local", "")) as bus, asking(bus, NOW) as (agents, name):
        [call] = await waiting(agents, name)
        with pytest.raises(Conflict, match="busy"):
            await agents.system.execute(asked(name, "x", when_busy=WhenBusy.reject))
        agents.tasks.start_soon(begin_other, agents, asked(name, "next", turn_id="u"))
        await agents.turns.approve(about(call))
        assert (await ended(agents, name)).status is TurnStatus.completed
        while True:  # The next one asks as well.
            found = [one async for one in agents.turns.approvals(name)]
            if found:
                break
            await anyio.sleep(0.005)
        assert found[0].turn_id == "u"


async def test_events_tell_what_is_asked_and_decided() -> None:
    async with opened(("local", "")) as bus, asking(bus, NOW) as (agents, name):
        [call] = await waiting(agents, name)
        position = (await agents.turns.get(name, "t")).index
        await agents.turns.approve(about(call))
        events = await agents.events(name, "t")
        later = await agents.events(name, "t", 1, position)
        told = [event.event.approval for event in events if event.event and event.event.approval]
        assert told[0] == call
        assert told[1].decision is APPROVE
        assert later == events[position:]


async def test_only_executable_tools_require_approval() -> None:
    async with opened(("local", "")) as bus:
        async with running_agents(bus, WeatherActor()) as agents:
            with pytest.raises(InvalidRequest, match="not among the executable_tools"):
                await agents.create("al", **{**ASKING, "require_approval": {"weather"}})


async def test_what_follows_an_approval_is_heard(kind: tuple[str, str]) -> None:
    """A turn that went on after a decision still hears the next one, and a cancel."""
    weather = WeatherActor(held=True)
    async with (
        opened(kind) as bus,
        asking(bus, NOW, PUNO, weather=weather, local=kind[0] == "here") as (agents, name),
    ):
        first, second = await waiting(agents, name, 2)
        await agents.turns.approve(about(first))
        await weather.asked.wait()
        weather.asked = anyio.Event()
        await agents.turns.approve(about(second))
        await weather.asked.wait()
        turn = await agents.turns.cancel(name, "t", "enough")
        assert turn.status is TurnStatus.cancelled
    assert answers(turn) == ["The turn was cancelled."] * 2


async def test_a_turn_that_waits_may_be_looked_at_any_number_of_times() -> None:
    """What was decided before is no news: it is not claimed again and again, and not given up."""
    async with opened(("local", "")) as bus, asking(bus, NOW, PUNO) as (agents, name):
        first, second = await waiting(agents, name, 2)
        await agents.turns.approve(about(first))
        assert await waiting(agents, name) == [second]
        before = await written(agents, name)
        for number in range(2 * MAX_ATTEMPTS):
            streams = agents.bus.storage.streams
            await streams.append(wake_subject(name), b"", msg_id=f"again {number}")
            await anyio.wait_all_tasks_blocked()
        assert await waiting(agents, name) == [second]
        assert await written(agents, name) == before
        await agents.turns.approve(about(second))
        assert (await ended(agents, name)).status is TurnStatus.completed


async def written(agents: Agents, name: str) -> int:
    """Return how many records a turn has."""
    async with standing_records(agents.bus, agents.register.claims, name, "t") as records:
        return len([one async for one in records])


async def test_an_approval_that_comes_too_late_is_none() -> None:
    weather = WeatherActor(held=True)
    async with (
        opened(("local", "")) as bus,
        asking(bus, FORECAST, NOW, weather=weather, approval_timeout=0.1) as (agents, name),
    ):
        await weather.asked.wait()
        [call] = (await agents.turns.get(name, "t")).approvals
        while datetime.now(UTC) < call.expires_at:
            await anyio.sleep(0.01)
        with pytest.raises(Conflict, match="denied already"):
            await agents.turns.approve(about(call))
        weather.gate.set()
        assert "nobody decided" in answers(await ended(agents, name))[1]
    assert len(weather.keys) == 1


async def test_what_nobody_was_asked_about_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where arguments that were wrong when it was to be asked seem to be right when the call is to run."""
    weather = WeatherActor()
    monkeypatch.setattr(approvals, "problem_with", lambda *_: "too deep")
    async with opened(("local", "")) as bus, asking(bus, NOW, weather=weather) as (agents, name):
        turn = await ended(agents, name)
    assert answers(turn) == ["The arguments are wrong: they could not be checked"]
    assert weather.keys == []


async def test_a_journal_without_its_beginning_does_not_keep_an_executor_busy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It becomes a dead letter, once; the calls of others are listed all the same."""
    async with opened(("local", "")) as bus, asking(bus, NOW) as (agents, name):
        await waiting(agents, name)
        streams = agents.bus.storage.streams
        subject = journal_subject(name, "t")
        first = await streams.first(JOURNAL.name, subject)
        assert first is not None
        await streams.purge(JOURNAL.name, subject, before=first.sequence + 1)
        assert [one async for one in agents.turns.approvals()] == []
        await streams.append(wake_subject(name), b"", msg_id="again")
        while not (found := await letters(agents.bus.storage)):
            await anyio.sleep(0.005)
        assert "cannot be read" in found[0].reason
        assert sum("cannot be read" in record.getMessage() for record in caplog.records) == 1
