"""Agents and their turns, within the process and on a real nats-server; the model's words are scripted."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.agents import MODEL, Agents, asked, running_agents
from support.memory import running_memory
from support.weather import CONFIG, FORECAST, NOW, TAIL, WeatherActor, weather_script

from ayllu.actors.agents.desk import LEASE_BUCKET
from ayllu.actors.agents.plan import MAX_INVALID
from ayllu.actors.agents.records import Execute
from ayllu.actors.agents.streams import AGENTS, command_subject, wake_subject
from ayllu.actors.engines.engine import Generation, Prompt
from ayllu.actors.engines.scripted import Script, ScriptedEngine, Step, script_from, script_of
from ayllu.actors.leases import lease_bucket
from ayllu.bus.bus import Bus, connect, local_bus
from ayllu.bus.client import client
from ayllu.bus.deadletters import letters, replay
from ayllu.schemas import (
    AgenticSystem,
    AgenticSystemExecuteRequest,
    AgenticSystemTurn,
    Cancelled,
    CompletionRequest,
    Conflict,
    ContextLengthExceeded,
    DeadlineExceeded,
    ExecutionStepType,
    HistoryPolicy,
    Inference,
    InvalidRequest,
    MemoryBankDocument,
    MemoryBanks,
    MemoryRetrievalStep,
    Message,
    ModelInferenceStep,
    ModelNotFound,
    NotFound,
    Retrieval,
    Role,
    ShieldConfig,
    ShieldType,
    ToolCall,
    ToolDefinition,
    ToolExecutionStep,
    ToolResponse,
    Turn,
    TurnStatus,
    Unsupported,
    WhenBusy,
    encode,
)

pytestmark = pytest.mark.asyncio

_numbers = itertools.count()


class Buses:
    """Opens buses of one kind, and has names that are this test's own; ``here``: the API has an executor of its own."""

    def __init__(self, kind: str, request: pytest.FixtureRequest) -> None:
        self.kind = kind
        self.url = request.getfixturevalue("nats_url") if kind == "nats" else ""
        self.here = kind == "here"
        self.agent = f"agent {os.getpid()} {next(_numbers)} ä.*>"

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Bus]:
        async with connect(self.url) if self.kind == "nats" else local_bus() as bus:
            with anyio.fail_after(40):
                yield bus


@pytest.fixture(params=["local", "here", "nats"])
def buses(request: pytest.FixtureRequest) -> Buses:
    return Buses(request.param, request)


async def whole(agents: Agents, agent: str, text: str, **fields: Any) -> AgenticSystemTurn:
    return (await agents.system.execute(asked(agent, text, **fields))).turn


async def ended(agents: Agents, agent: str, turn: str) -> Turn:
    """Return a turn when it has ended."""
    events = await agents.events(agent, turn)
    assert [event.index for event in events] == list(range(len(events)))
    found = events[-1].turn
    assert found is not None
    return found


async def accepted(agents: Agents, agent: str, turn: str) -> Turn:
    """Wait until a turn is accepted."""
    while True:
        try:
            return await agents.turns.get(agent, turn)
        except NotFound:
            await anyio.sleep(0.005)


def said_to(prompt: Prompt, *roles: str) -> list[str]:
    return [message.text for message in prompt.messages if message.role in roles]


def ignore(*_: object) -> None:
    pass


@pytest.mark.requirement("overloaded-is-borne")
async def test_a_turn_waits_for_a_model_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is full for longer than it may be away."""
    monkeypatch.setattr("ayllu.actors.agents.inference.PATIENCE", 0.1)
    gate = anyio.Event()
    engine = ScriptedEngine(script_of({"block": [gate, "free"], "": ["hello"]}), slots=1)
    async with local_bus() as bus, running_agents(bus, engine=engine, waiting=0) as agents:
        await agents.create("one")
        turns: list[AgenticSystemTurn] = []
        async with anyio.create_task_group() as tasks:
            request = CompletionRequest(model=MODEL, content="block")
            tasks.start_soon(client(Inference, bus).completion, request)
            await engine.wait_for(lambda engine: engine.running == 1)

            async def take_turn() -> None:
                turns.append(await whole(agents, "one", "hello"))

            tasks.start_soon(take_turn)
            await anyio.sleep(1)  # Twice the shortest hint, and ten times the patience.
            assert not turns
            gate.set()
        assert len(turns) == 1


@pytest.mark.requirement("agent-operations")
async def test_agents_are_created_listed_and_deleted(buses: Buses) -> None:
    async with buses() as bus, running_agents(bus, local=buses.here) as agents:
        await agents.create(buses.agent, max_tokens=7)
        with pytest.raises(Conflict):
            await agents.create(buses.agent)
        found = await agents.system.get(buses.agent)
        assert (found.config.max_tokens, found.agent_uuid) == (7, buses.agent)
        assert buses.agent in [agent.agent_uuid async for agent in agents.system.list()]
        await agents.system.delete(buses.agent)
        for call in (
            agents.system.get(buses.agent),
            agents.system.delete(buses.agent),
            agents.system.execute(asked(buses.agent, "x")),
        ):
            with pytest.raises(NotFound):
                await call


WRONG: list[tuple[str, dict[str, Any], type[Exception]]] = [
    ("model", {"model": "gpt"}, ModelNotFound),
    ("executable", {"executable_tools": {"x"}}, InvalidRequest),
    (
        "nobody offers",
        {"available_tools": [ToolDefinition("x")], "executable_tools": {"x"}},
        NotFound,
    ),
    (
        "built in",
        {"available_tools": [ToolDefinition("math")], "executable_tools": {"math"}},
        Unsupported,
    ),
    ("shields", {"input_shields": [ShieldConfig(ShieldType.llama_guard)]}, NotFound),
    ("tools", {"available_tools": [ToolDefinition("x"), ToolDefinition("x")]}, InvalidRequest),
    ("schema", {"available_tools": [ToolDefinition("x", {"a": 3})]}, InvalidRequest),
    ("context", {"max_tokens": 5000}, InvalidRequest),
]


@pytest.mark.requirement("agent-validation")
@pytest.mark.parametrize(("config", "error"), [one[1:] for one in WRONG], ids=[w[0] for w in WRONG])
async def test_a_wrong_agent_is_not_created(config: dict[str, Any], error: type[Exception]) -> None:
    async with local_bus() as bus, running_agents(bus) as agents:
        with pytest.raises(error):
            await agents.create("al", **config)
        assert [agent async for agent in agents.system.list()] == []


@pytest.mark.requirement("agent-validation")
async def test_all_that_is_wrong_is_said_at_once() -> None:
    async with local_bus() as bus, running_agents(bus) as agents:
        with pytest.raises(InvalidRequest) as wrong:
            await agents.create(
                "al", model="gpt", executable_tools={"x"}, memory_bank_uuids=["b", "b"]
            )
        assert len(wrong.value.details["problems"]) == 4


@pytest.mark.requirement("agent-validation")
@pytest.mark.parametrize(
    "messages",
    [
        [],
        [Message(role=Role.assistant, content="x")],
        [Message(role=Role.system, content="x")],
        [Message(role=Role.user, content="")],
    ],
)
async def test_messages_that_begin_no_turn(messages: list[Message]) -> None:
    async with local_bus() as bus, running_agents(bus) as agents:
        await agents.create("al")
        with pytest.raises(InvalidRequest):
            await agents.system.execute(AgenticSystemExecuteRequest("al", messages))


@pytest.mark.requirement("agent-turns")
async def test_a_turn_streams_its_steps_and_then_itself(buses: Buses) -> None:
    script = cast(Script, weather_script(NOW, FORECAST))
    async with (
        buses() as bus,
        running_agents(bus, WeatherActor(), script=script, local=buses.here) as agents,
    ):
        await agents.create(buses.agent, **CONFIG)
        stream = agents.system.stream_execute(asked(buses.agent, "How is it?", turn_id="t"))
        chunks = [chunk async for chunk in stream]
        kinds = list(dict.fromkeys(chunk.step_type for chunk in chunks))
        assert kinds == [ExecutionStepType.model_inference, ExecutionStepType.tool_execution]
        assert [str(chunk.event_type) for chunk in chunks][:3] == [
            "step_start",
            "step_progress",
            "step_progress",
        ]
        turn = await ended(agents, buses.agent, "t")
        model, tool, answer = turn.steps
        assert isinstance(tool, ToolExecutionStep)
        assert {str(response.content) for response in tool.tool_responses} == {
            "sunny in Cusco",
            "2 days of sun in Cusco",
        }
        assert isinstance(model, ModelInferenceStep)
        assert isinstance(answer, ModelInferenceStep)
        assert turn.response_message is not None
        assert str(turn.response_message.content).endswith(TAIL)
        assert turn.usage is not None
        assert turn.usage.completion_tokens == sum(
            step.usage.completion_tokens
            for step in turn.steps
            if isinstance(step, ModelInferenceStep) and step.usage is not None
        )
        # What is sent again under the same id is the same turn.
        again = await whole(agents, buses.agent, "How is it?", turn_id="t")
        assert again.response_message == turn.response_message
        assert len([one async for one in agents.turns.list(buses.agent)]) == 1


@pytest.mark.requirement("agent-turns")
async def test_agents_remember(buses: Buses) -> None:
    async with buses() as bus, running_agents(bus, local=buses.here) as agents:
        await agents.create(buses.agent)
        for text in ("one", "two"):
            await whole(agents, buses.agent, text)
        turn = await whole(agents, buses.agent, "three")
        prompt, _ = agents.engine.prompts[-1]
        assert said_to(prompt, "system") == ["Help."]
        assert said_to(prompt, "user", "assistant") == ["one", "one", "two", "two", "three"]
        assert turn.history is not None
        assert (turn.history.turns, turn.history.left_out) == (2, 0)
        await whole(agents, buses.agent, "four", turn_history=[turn])
        prompt, _ = agents.engine.prompts[-1]
        assert said_to(prompt, "user", "assistant") == ["three", "three", "four"]
        await whole(agents, buses.agent, "five", turn_history=[])
        prompt, _ = agents.engine.prompts[-1]
        assert said_to(prompt, "user", "assistant") == ["five"]


@pytest.mark.requirement("agent-history")
@pytest.mark.parametrize("policy", list(HistoryPolicy))
async def test_a_history_that_exceeds_the_context(policy: HistoryPolicy) -> None:
    long = "word " * 100
    engine = ScriptedEngine(script_from("echo"), context=512)
    async with local_bus() as bus, running_agents(bus, engine=engine) as agents:
        await agents.create("al", history_policy=policy)
        await whole(agents, "al", long)
        if policy is HistoryPolicy.refuse:
            with pytest.raises(ContextLengthExceeded):
                await whole(agents, "al", long)
            return
        turn = await whole(agents, "al", long)
        assert turn.history is not None
        assert (turn.history.turns, turn.history.left_out) == (0, 1)
        summed = policy is HistoryPolicy.summarise
        assert (turn.history.summary is not None) is summed
        prompt, _ = agents.engine.prompts[-1]
        assert len(said_to(prompt, "user")) == 1
        assert ("Earlier in this conversation" in said_to(prompt, "system")[0]) is summed


@pytest.mark.requirement("agent-history")
async def test_what_the_estimate_lets_through_and_the_engine_refuses_is_cut_further() -> None:
    def script(prompt: Prompt, _: Generation) -> Sequence[Step]:
        if len(prompt.messages) > 4:
            return [ContextLengthExceeded("too long for this engine")]
        return ["fine"]

    async with local_bus() as bus, running_agents(bus, script=script) as agents:
        await agents.create("al")
        for number in range(4):
            await whole(agents, "al", f"turn {number}")
        turn = await whole(agents, "al", "turn 4")
        assert turn.history is not None
        assert turn.history.turns <= 1
        assert turn.history.left_out >= 3


@pytest.mark.requirement("agent-client-tools")
async def test_a_tool_of_the_client_ends_the_turn_and_its_answer_begins_the_next(
    buses: Buses,
) -> None:
    def script(prompt: Prompt, _: Generation) -> Sequence[Step]:
        if prompt.messages[-1].role == "tool":
            return ["It is ", "noon."]
        return ['<tool_call>[{"name": "clock", "arguments": {}}]</tool_call>']

    async with buses() as bus, running_agents(bus, script=script, local=buses.here) as agents:
        await agents.create(buses.agent, available_tools=[ToolDefinition("clock")])
        turn = await whole(agents, buses.agent, "What time is it?")
        assert turn.response_message.tool_calls == [ToolCall("clock", {})]
        answer = Message(
            role=Role.tool, content="", tool_responses=[ToolResponse("clock", "12:00")]
        )
        request = AgenticSystemExecuteRequest(buses.agent, [answer])
        after = (await agents.system.execute(request)).turn
        assert after.response_message.content == "It is noon."
        prompt, _ = agents.engine.prompts[-1]
        assert [message.role for message in prompt.messages][1:] == ["user", "assistant", "tool"]


@pytest.mark.requirement("agent-tools")
async def test_wrong_calls_go_back_to_the_model_and_in_the_end_fail_the_turn() -> None:
    wrong = '{"name": "weather.now", "arguments": {"town": "Cusco"}}'

    def script(prompt: Prompt, _: Generation) -> Sequence[Step]:
        return [f"<tool_call>[{wrong}]</tool_call>"]

    weather = WeatherActor()
    async with local_bus() as bus, running_agents(bus, weather, script=script) as agents:
        await agents.create("al", **CONFIG)
        with pytest.raises(InvalidRequest):
            await whole(agents, "al", "x", turn_id="t")
        turn = await agents.turns.get("al", "t")
        steps = [step for step in turn.steps if isinstance(step, ToolExecutionStep)]
        assert len(steps) == MAX_INVALID + 1
        assert "city" in str(steps[0].tool_responses[0].content)
        assert weather.keys == []


@pytest.mark.requirement("agent-busy")
async def test_turns_of_one_agent_wait_for_each_other(buses: Buses) -> None:
    gate = anyio.Event()

    def script(prompt: Prompt, _: Generation) -> Sequence[Step]:
        return [prompt.messages[-1].text, *([gate] if prompt.messages[-1].text == "0" else [])]

    async with (
        buses() as bus,
        running_agents(bus, script=script, executors=2, local=buses.here) as agents,
    ):
        await agents.create(buses.agent)
        async with anyio.create_task_group() as tasks:
            for number in range(4):
                name = str(number)
                tasks.start_soon(whole_turn, agents, buses.agent, name, name)
                await accepted(agents, buses.agent, name)
            assert (await agents.turns.get(buses.agent, "3")).status is TurnStatus.queued
            with pytest.raises(Conflict):
                await whole(agents, buses.agent, "x", when_busy=WhenBusy.reject)
            gate.set()
        listed = [turn.turn_id async for turn in agents.turns.list(buses.agent)]
        assert listed == ["0", "1", "2", "3"]
        prompt, _ = agents.engine.prompts[-1]
        assert said_to(prompt, "user") == ["0", "1", "2", "3"]
        await whole(agents, buses.agent, "x", when_busy=WhenBusy.reject)


async def whole_turn(agents: Agents, agent: str, text: str, turn: str) -> None:
    await whole(agents, agent, text, turn_id=turn)


@pytest.mark.requirement("agent-busy")
async def test_an_interrupt_cancels_what_runs_and_waits(buses: Buses) -> None:
    def script(prompt: Prompt, _: Generation) -> Sequence[Step]:
        text = prompt.messages[-1].text
        return [text] if text == "now" else [text, anyio.Event()]

    async with buses() as bus, running_agents(bus, script=script, local=buses.here) as agents:
        await agents.create(buses.agent)
        async with anyio.create_task_group() as tasks:
            for name in ("running", "waiting"):
                tasks.start_soon(fails, agents, buses.agent, name, Cancelled)
                await accepted(agents, buses.agent, name)
            await agents.engine.wait_for(lambda engine: engine.running == 1)
            turn = await whole(agents, buses.agent, "now", when_busy=WhenBusy.interrupt)
            assert turn.response_message.content == "now"
        assert agents.engine.cancelled == 1
        running = await agents.turns.get(buses.agent, "running")
        assert running.status is TurnStatus.cancelled
        [step] = running.steps
        assert isinstance(step, ModelInferenceStep)
        assert step.text == "running"


async def fails(agents: Agents, agent: str, turn: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await whole(agents, agent, turn, turn_id=turn)


@pytest.mark.requirement("agent-cancel")
async def test_a_cancel_reaches_the_model_and_keeps_what_was_said(buses: Buses) -> None:
    async with buses() as bus, running_agents(bus, script="stall:3", local=buses.here) as agents:
        await agents.create(buses.agent)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fails, agents, buses.agent, "t", Cancelled)
            while (await accepted(agents, buses.agent, "t")).partial_text != "1 2 3":
                await anyio.sleep(0.005)
            turn = await agents.turns.cancel(buses.agent, "t", "enough")
            assert turn.status is TurnStatus.cancelled
            assert turn.error is not None
            assert turn.error.message == "enough"
            await agents.engine.wait_for(lambda engine: engine.running == 0)
            assert await agents.turns.cancel(buses.agent, "t") == turn
        with pytest.raises(NotFound):
            await agents.turns.cancel(buses.agent, "unknown")
        # Later turns see what was said before the cancel.
        agents.engine._script = script_from("echo")
        await whole(agents, buses.agent, "go on")
        prompt, _ = agents.engine.prompts[-1]
        assert said_to(prompt, "user", "assistant") == ["t", "1 2 3", "go on"]


@pytest.mark.requirement("agent-cancel")
async def test_a_cancel_reaches_tools(buses: Buses) -> None:
    weather = WeatherActor(held=True)
    script = cast(Script, weather_script(NOW))
    async with (
        buses() as bus,
        running_agents(bus, weather, script=script, local=buses.here) as agents,
    ):
        await agents.create(buses.agent, **CONFIG)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fails, agents, buses.agent, "t", Cancelled)
            await weather.asked.wait()
            turn = await agents.turns.cancel(buses.agent, "t")
            step = turn.steps[-1]
            assert isinstance(step, ToolExecutionStep)
            assert "cancelled" in str(step.tool_responses[0].content)


@pytest.mark.requirement("agent-cancel")
async def test_a_cancel_that_comes_while_no_executor_is_there(buses: Buses) -> None:
    async with buses() as bus, running_agents(bus, script="stall:2", executors=0) as agents:
        await agents.create(buses.agent)
        _, scope = await agents.executor()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fails, agents, buses.agent, "t", Cancelled)
            while (await accepted(agents, buses.agent, "t")).partial_text != "1 2":
                await anyio.sleep(0.005)
            scope.cancel()
            tasks.start_soon(agents.turns.cancel, buses.agent, "t", "enough")
            subject = command_subject(buses.agent)
            while await bus.storage.streams.first(AGENTS.name, subject, after=0) is None or (
                await bus.storage.streams.last(AGENTS.name, subject)
            ) == await bus.storage.streams.first(AGENTS.name, subject):
                await anyio.sleep(0.005)
            await agents.executor()
        turn = await ended(agents, buses.agent, "t")
        assert turn.status is TurnStatus.cancelled
        [step] = turn.steps
        assert isinstance(step, ModelInferenceStep)
        assert step.text == "1 2"


@pytest.mark.requirement("agent-cancel")
async def test_leaving_a_turn_does_not_end_it(buses: Buses) -> None:
    gate = anyio.Event()

    def script(*_: object) -> Sequence[Step]:
        return ["one", gate, " two"]

    async with buses() as bus, running_agents(bus, script=script, local=buses.here) as agents:
        await agents.create(buses.agent)
        stream = agents.system.stream_execute(asked(buses.agent, "x", turn_id="t"))
        assert (await anext(aiter(stream))).step_type is ExecutionStepType.model_inference
        await stream.aclose()  # type: ignore[attr-defined]
        gate.set()
        turn = await ended(agents, buses.agent, "t")
        assert turn.response_message is not None
        assert turn.response_message.content == "one two"


@pytest.mark.requirement("agent-cancel")
async def test_a_turn_outlives_the_deadline_of_the_call_that_asked_for_it(buses: Buses) -> None:
    async with buses() as bus, running_agents(bus, script="slow:30", local=buses.here) as agents:
        await agents.create(buses.agent)
        with pytest.raises(DeadlineExceeded):
            await client(AgenticSystem, bus, timeout=0.2).execute(
                asked(buses.agent, "x", turn_id="t")
            )
        turn = await ended(agents, buses.agent, "t")
        assert turn.status is TurnStatus.completed
        # And what the same executor does next has a deadline of its own.
        await whole(agents, buses.agent, "y")


@pytest.mark.requirement("agent-operations")
async def test_deleting_an_agent_ends_its_turns(buses: Buses) -> None:
    async with buses() as bus, running_agents(bus, script="stall:1", local=buses.here) as agents:
        await agents.create(buses.agent)
        async with anyio.create_task_group() as tasks:
            for name in ("running", "waiting"):
                tasks.start_soon(fails, agents, buses.agent, name, Cancelled)
                await accepted(agents, buses.agent, name)
            await agents.system.delete(buses.agent)
        # Who creates it again gets an agent that remembers nothing.
        agents.engine._script = script_from("echo")
        await agents.create(buses.agent)
        turn = await whole(agents, buses.agent, "x")
        assert turn.history is not None
        assert turn.history.turns == 0


@pytest.mark.requirement("turn-positions")
async def test_a_turn_is_followed_from_any_position(buses: Buses) -> None:
    gate = anyio.Event()

    def script(*_: object) -> Sequence[Step]:
        return ["a", " b", gate, " c", " d"]

    async with buses() as bus, running_agents(bus, script=script, local=buses.here) as agents:
        await agents.create(buses.agent)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(whole_turn, agents, buses.agent, "x", "t")
            await agents.engine.wait_for(lambda engine: engine.running == 1)
            while (state := await accepted(agents, buses.agent, "t")).index < 3:
                await anyio.sleep(0.005)
            assert (state.partial_text, state.status) == ("a b", TurnStatus.running)
            live = agents.turns.events(buses.agent, "t", state.epoch, 2)
            first = await anext(aiter(live))
            assert first.event is not None
            assert (first.index, first.event.response_text_delta) == (2, " b")
            gate.set()
            rest = [event async for event in live]
            events = await agents.events(buses.agent, "t")
            assert [first, *rest] == events[2:]
            for index in range(len(events)):
                assert await agents.events(buses.agent, "t", 1, index) == events[index:]
        # A position of another epoch is of other events: the reader begins anew from the turn's state.
        [begun, *_] = await agents.events(buses.agent, "t", 7, 3)
        assert not begun.recovered
        assert begun.turn is not None
        with pytest.raises(NotFound):
            await agents.events(buses.agent, "unknown")


@pytest.mark.requirement("turn-commands")
async def test_duplicated_reordered_late_and_poison_commands(buses: Buses) -> None:
    async with buses() as bus, running_agents(bus, local=buses.here) as agents:
        await agents.create(buses.agent)
        subject, streams = command_subject(buses.agent), bus.storage.streams
        poison = await streams.append(subject, b'{"c": "dance"}', msg_id=f"poison {buses.agent}")
        for number in range(3):
            await streams.append(
                wake_subject(buses.agent), b"", msg_id=f"again {buses.agent} {number}"
            )
        await whole(agents, buses.agent, "one", turn_id="t")
        command = Execute("t", [Message(role=Role.user, content="one")])
        # After the window of duplicates it is stored again; the turn has ended, and is not taken again.
        await streams.append(subject, encode(command), msg_id=f"late {buses.agent}")
        await whole(agents, buses.agent, "two")
        assert len([turn async for turn in agents.turns.list(buses.agent)]) == 2
        buried = [one for one in await letters(bus.storage) if one.subject == subject]
        assert [(one.sequence, one.attempts) for one in buried] == [(poison.sequence, 1)]
        assert await streams.first(AGENTS.name, subject) is None


@pytest.mark.requirement("turn-commands")
async def test_a_turn_that_expired_before_it_began(buses: Buses) -> None:
    async with buses() as bus, running_agents(bus, executors=0) as agents:
        await agents.create(buses.agent)
        async with anyio.create_task_group() as tasks:
            request = asked(buses.agent, "x", turn_id="t", expires_in=0.05)
            tasks.start_soon(raises, agents, request, DeadlineExceeded)
            await accepted(agents, buses.agent, "t")
            await anyio.sleep(0.1)
            await agents.executor()
        assert (await ended(agents, buses.agent, "t")).status is TurnStatus.failed


async def raises(
    agents: Agents, request: AgenticSystemExecuteRequest, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await agents.system.execute(request)


@pytest.mark.requirement("turn-commands")
async def test_a_turn_over_which_executors_are_lost_becomes_a_dead_letter_that_can_be_sent_again(
    buses: Buses,
) -> None:
    async with buses() as bus, running_agents(bus, script="stall:1", executors=0) as agents:
        await agents.create(buses.agent)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lost, agents, buses.agent)
            # Each dies before the journal moves: what the model says is never written.
            for number in range(6):
                _, scope = await agents.executor()
                if number < 5:
                    await agents.engine.wait_for(partial(began_more_than, number))
                    scope.cancel()
        turn = await ended(agents, buses.agent, "t")
        assert turn.status is TurnStatus.failed
        subject = command_subject(buses.agent)
        [letter] = [one for one in await letters(bus.storage) if one.subject == subject]
        assert letter.attempts == 5
        agents.engine._script = script_from("echo")
        await replay(bus.storage, letter.id)
        await bus.storage.streams.append(
            wake_subject(buses.agent), b"", msg_id=f"wake again {buses.agent}"
        )
        while True:
            turns = [turn async for turn in agents.turns.list(buses.agent)]
            if len(turns) == 2 and turns[1].status is TurnStatus.completed:
                break
            await anyio.sleep(0.01)


def began_more_than(count: int, engine: ScriptedEngine) -> bool:
    return engine.started > count


async def lost(agents: Agents, agent: str) -> None:
    with pytest.raises(Exception, match="executors were lost"):
        await whole(agents, agent, "x", turn_id="t")


@pytest.mark.requirement("turn-fenced")
async def test_a_zombie_cannot_write(buses: Buses) -> None:
    """An executor that was stopped for longer than its lease finds the turn ended by another one."""
    gate = anyio.Event()

    def script(prompt: Prompt, _: Generation) -> Sequence[Step]:
        # The first to ask is held up in mid-sentence.
        return ["one", gate, " zombie"] if not prompt.continues else [" two"]

    async with buses() as bus, running_agents(bus, script=script, local=buses.here) as agents:
        await agents.create(buses.agent)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(whole_turn, agents, buses.agent, "x", "t")
            await agents.engine.wait_for(lambda engine: engine.running == 1)
            while (await accepted(agents, buses.agent, "t")).index < 2:
                await anyio.sleep(0.005)
            # Its lease is taken away, as if it had not renewed it, and another executor is woken.
            leases = await lease_bucket(bus, LEASE_BUCKET)
            await leases.delete(buses.agent)
            _, _ = await agents.executor()
            await bus.storage.streams.append(
                wake_subject(buses.agent), b"", msg_id=f"second {buses.agent}"
            )
            turn = await ended(agents, buses.agent, "t")
            gate.set()
            assert turn.response_message is not None
            assert turn.response_message.content == "one two"
            assert await ended(agents, buses.agent, "t") == turn
        await whole(agents, buses.agent, "after")


@pytest.mark.requirement("agent-model-lost")
async def test_the_model_is_lost_in_mid_sentence(buses: Buses) -> None:
    from ayllu.schemas import ActorLost

    failures = iter([True, False])

    def script(prompt: Prompt, _: Generation) -> Sequence[Step]:
        if prompt.continues:
            return [" two"]
        return ["one", ActorLost("gone")] if next(failures) else ["never"]

    async with buses() as bus, running_agents(bus, script=script, local=buses.here) as agents:
        await agents.create(buses.agent)
        turn = await whole(agents, buses.agent, "x")
        assert turn.response_message.content == "one two"
        assert len(turn.steps) == 1


@pytest.mark.requirement("agent-model-lost")
async def test_an_engine_that_cannot_continue_begins_another_step() -> None:
    from ayllu.schemas import ActorLost

    failures = iter([True])
    engine = ScriptedEngine(
        lambda *_: ["one", ActorLost("gone")] if next(failures, False) else ["whole"],
        capabilities=frozenset(),
    )
    async with local_bus() as bus, running_agents(bus, engine=engine) as agents:
        await agents.create("al")
        turn = await whole(agents, "al", "x")
        assert [step.text for step in turn.steps if isinstance(step, ModelInferenceStep)] == [
            "one",
            "whole",
        ]
        assert turn.response_message.content == "whole"
        assert MODEL == "script"


@pytest.mark.requirement("agent-retrieval")
async def test_an_agent_looks_into_its_memory_banks(buses: Buses, tmp_path: Path) -> None:
    def script(prompt: Prompt, _: Generation) -> Sequence[Step]:
        return ["Grounded."]

    async with (
        buses() as bus,
        running_memory(bus, tmp_path) as memory,
        running_agents(
            bus, memory.banks, memory.documents, script=script, local=buses.here
        ) as agents,
    ):
        bank = f"bank of {buses.agent}"
        texts = {"llamas": "llamas live in the Andes", "boats": "boats of reed sail on the lake"}
        documents = [
            MemoryBankDocument(uuid, text.encode(), {"kind": uuid}, "text/plain")
            for uuid, text in texts.items()
        ]
        await client(MemoryBanks, bus).create(bank, "b", documents)
        await agents.create(
            buses.agent, memory_bank_uuids=[bank], retrieval=Retrieval(max_tokens=10, k=2)
        )
        turn = await whole(agents, buses.agent, "where do llamas live", turn_id="t")
        step = turn.steps[0]
        assert isinstance(step, MemoryRetrievalStep)
        # The budget has room for one passage only: the better one.
        assert [document.content for document in step.documents] == [b"llamas live in the Andes"]
        assert step.documents[0].metadata == {"kind": "llamas"}
        assert len(step.scores) == 1
        [system] = said_to(agents.engine.prompts[-1][0], "system")
        assert "llamas live in the Andes" in system
        events = await agents.events(buses.agent, "t")
        assert [
            event.event.retrieved_document.uuid
            for event in events
            if event.event is not None and event.event.retrieved_document is not None
        ] == ["llamas"]
        await client(MemoryBanks, bus).drop(bank)
        with pytest.raises(NotFound):
            await whole(agents, buses.agent, "where do llamas live")


@pytest.mark.requirement("agent-cancel")
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.integers(0, 60), here=st.booleans())
async def test_a_cancel_at_any_point_ends_the_turn_once(turns: int, here: bool) -> None:
    """However far a turn has come: it ends once, what was said is kept, and the agent goes on."""
    script = cast(Script, weather_script(NOW))
    executors = 0 if here else 1
    with anyio.fail_after(20):
        async with (
            local_bus() as bus,
            running_agents(
                bus, WeatherActor(), script=script, local=here, executors=executors
            ) as agents,
        ):
            await agents.create("al", **CONFIG)
            seen: list[object] = []

            async def take() -> None:
                try:
                    async for chunk in agents.system.stream_execute(asked("al", "x", turn_id="t")):
                        seen.append(chunk)
                except Cancelled:
                    pass

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(take)
                await accepted(agents, "al", "t")
                for _ in range(turns):
                    await anyio.lowlevel.checkpoint()
                await agents.turns.cancel("al", "t")
            events = await agents.events("al", "t")
            assert seen == [event.event for event in events[:-1]]
            turn = await ended(agents, "al", "t")
            assert turn.status in (TurnStatus.cancelled, TurnStatus.completed)
            assert (await whole(agents, "al", "again")).response_message.content


@pytest.mark.requirement("turn-positions")
async def test_a_position_of_a_later_epoch() -> None:
    """After a loss readers began anew; who comes back with a position from after it has lost nothing more."""
    from support.journals import AT, began

    from ayllu.actors.agents.records import Claimed, Ended, Said
    from ayllu.actors.agents.streams import JOURNAL, journal_subject

    async with local_bus() as bus, running_agents(bus, executors=0) as agents:
        await agents.create("al")
        records = [
            began(),
            Claimed(at=AT, attempt=2, executor="b", epoch=2),
            Said(at=AT, text="abc", cuts=[1, 2, 3]),
            Ended(at=AT, status=TurnStatus.cancelled),
        ]
        subject = journal_subject("al", "t")
        await bus.storage.streams.append(subject, encode(records), msg_id="all")
        assert (await bus.storage.streams.state(JOURNAL.name)).count == 1
        events = await agents.events("al", "t", 2, 3)
        assert [(event.index, event.recovered) for event in events] == [
            (3, True),
            (4, True),
            (5, True),
        ]
        [first, *rest] = await agents.events("al", "t", 1, 3)
        assert (first.index, first.recovered) == (1, False)
        assert [event.index for event in rest] == [1, 2, 3, 4, 5]


@pytest.mark.requirement("agent-operations")
async def test_a_turn_of_an_agent_that_is_gone_ends() -> None:
    async with local_bus() as bus, running_agents(bus, executors=0) as agents:
        await agents.create("al")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fails, agents, "al", "t", Cancelled)
            await accepted(agents, "al", "t")
            await agents.register.agents.delete("al")
            await agents.executor()


@pytest.mark.requirement("agent-tools")
async def test_the_model_is_told_what_actors_say_of_their_tools() -> None:
    async with local_bus() as bus, running_agents(bus, WeatherActor()) as agents:
        await agents.create("al", **CONFIG)
        await whole(agents, "al", "hello")
        [system] = said_to(agents.engine.prompts[-1][0], "system")
        assert "Return the weather in a city." in system
        assert '"city"' in system
