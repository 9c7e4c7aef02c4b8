"""Agents that let other agents take turns: calls, fan-outs, hand-offs, and what all of them share."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from support.agents import Agents, asked, running_agents
from support.buses import buses
from support.teams import Part, asks, call, calls, echoes, parts
from support.weather import NOW, TOOLS, WeatherActor
from support.word_shield import WordShield, shield

from ayllu.actors.agents.streams import command_subject, journal_subject
from ayllu.actors.engines.scripted import Step
from ayllu.actors.shields.actor import ShieldsActor
from ayllu.bus.durable import Appended
from ayllu.bus.memory_streams import MemoryStreams
from ayllu.schemas import (
    AgenticSystemCreateRequest,
    ApprovalDecision,
    ApproveRequest,
    AylluError,
    BudgetExceeded,
    BusError,
    Cancelled,
    ChildTurn,
    DeadlineExceeded,
    Delegation,
    InvalidRequest,
    Limits,
    NotFound,
    ShieldConfig,
    SubAgent,
    ToolExecutionStep,
    TurnEvent,
    TurnStatus,
    Unsupported,
)

pytestmark = pytest.mark.asyncio


def sub(*agents: str, name: str = "ask", **fields: Any) -> SubAgent:
    """Return sub-agents."""
    return SubAgent(name, list(agents), **fields)


def fan(*agents: str, **fields: Any) -> SubAgent:
    """Return sub-agents that are asked at once."""
    return sub(*agents, kind=Delegation.fan_out, **fields)


def hand(agent: str, **fields: Any) -> SubAgent:
    """Return a sub-agent that takes the conversation over."""
    return sub(agent, kind=Delegation.hand_off, **fields)


@pytest.fixture(params=["local", "nats"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def team(
    kind: str, folder: Path, played: dict[str, Part], *, executors: int = 1
) -> AsyncIterator[Agents]:
    """Run agents on a bus."""
    async with (
        buses(kind, folder) as bus,
        running_agents(bus, script=parts(played), executors=executors) as agents,
    ):
        yield agents


async def member(agents: Agents, name: str, *subs: SubAgent, **config: Any) -> None:
    """Create an agent that plays the part of its name."""
    await agents.system.create(
        AgenticSystemCreateRequest(
            uuid=name, instructions=name, model="script", sub_agents=list(subs), **config
        )
    )


async def answer(agents: Agents, agent: str, text: str, **fields: Any) -> str:
    """Let an agent take a turn, and return its answer."""
    with anyio.fail_after(20):
        taken = await agents.system.execute(asked(agent, text, **fields))
    return str(taken.turn.response_message.content)


def responses(turn: Any) -> list[str]:
    """Return what the tools of a turn answered."""
    return [
        str(one.content)
        for step in turn.steps
        if isinstance(step, ToolExecutionStep)
        for one in step.tool_responses
    ]


@pytest.mark.requirement("team-call", "team-limits")
async def test_an_agent_asks_another_one_which_asks_a_third(kind: str, tmp_path: Path) -> None:
    played = {"boss": asks("ask"), "lead": asks("ask", "then {}"), "worker": echoes}
    async with team(kind, tmp_path, played) as agents:
        await member(agents, "worker")
        await member(agents, "lead", sub("worker"))
        await member(agents, "boss", sub("lead"))
        assert await answer(agents, "boss", "hello", turn_id="root") == "so then hello"
        root = await agents.turns.get("boss", "root")
        assert responses(root) == ["then hello"]
        [child] = root.children
        assert (child.agent_uuid, child.tool_name) == ("lead", "ask")
        below = await agents.turns.get("lead", child.turn_id)
        assert below.parent is not None
        assert (below.parent.agent_uuid, below.parent.turn_id) == ("boss", "root")
        assert (root.spent.steps, below.spent.steps) == (5, 3)
        assert root.usage is not None
        assert root.spent.tokens > root.usage.prompt_tokens + root.usage.completion_tokens
        # Nothing is left in the history of those who were asked.
        assert await answer(agents, "worker", "again", turn_id="own") == "again"
        own = await agents.turns.get("worker", "own")
        assert own.history is not None
        assert own.history.turns == 0


@pytest.mark.requirement("team-call")
@pytest.mark.parametrize("slots", [1, 2])
async def test_who_waits_holds_no_slot_that_others_need(slots: int, tmp_path: Path) -> None:
    played = {"boss": asks("ask"), "lead": asks("ask", "then {}"), "worker": echoes}
    async with team("local", tmp_path, played, executors=0) as agents:
        await member(agents, "worker")
        await member(agents, "lead", sub("worker"))
        await member(agents, "boss", sub("lead"))
        await agents.executor(slots=slots)
        assert await answer(agents, "boss", "hello") == "so then hello"


@pytest.mark.requirement("team-fan-out")
async def test_many_are_asked_at_once_within_a_limit_and_partial_results_are_gathered(
    kind: str, tmp_path: Path
) -> None:
    running, most = 0, 0
    gate = anyio.Event()

    def work(asked: str, _: Sequence[str]) -> Sequence[Step] | str:
        nonlocal running, most
        if asked == "fail":
            return [InvalidRequest("no")]
        running += 1
        most = max(most, running)
        if running == 3:
            gate.set()

        def steps() -> Sequence[Step]:
            return [gate, f"done {asked}"]

        return steps()

    tasks = [{"message": text} for text in ("a", "b", "c", "fail", "d")]

    def boss(_: str, answers: Sequence[str]) -> Sequence[Step] | str:
        return answers[0] if answers else calls(call("ask", tasks=tasks))

    async with team(kind, tmp_path, {"boss": boss, "worker": work}) as agents:
        await member(agents, "worker")
        await member(agents, "boss", fan("worker", at_once=3))
        told = json.loads(await answer(agents, "boss", "go", turn_id="t"))
        assert [one.get("answer") for one in told] == ["done a", "done b", "done c", None, "done d"]
        assert "no" in told[3]["error"]
        assert most >= 3  # They ran at the same time: the gate opens for three.
        root = await agents.turns.get("boss", "t")
        assert len({child.turn_id for child in root.children}) == 5


@pytest.mark.requirement("team-fan-out")
async def test_a_fan_out_to_several_agents_names_them(tmp_path: Path) -> None:
    tasks = [{"agent": "x", "message": "1"}, {"agent": "y", "message": "2"}]

    def boss(_: str, answers: Sequence[str]) -> Sequence[Step] | str:
        return answers[0] if answers else calls(call("ask", tasks=tasks))

    async with team("local", tmp_path, {"boss": boss, "x": echoes, "y": echoes}) as agents:
        await member(agents, "x")
        await member(agents, "y")
        await member(agents, "boss", fan("x", "y"))
        told = json.loads(await answer(agents, "boss", "go"))
        assert told == [{"agent": "x", "answer": "1"}, {"agent": "y", "answer": "2"}]


@pytest.mark.requirement("team-hand-off")
async def test_a_hand_off_moves_the_conversation_until_it_is_handed_back(
    kind: str, tmp_path: Path
) -> None:
    seen: list[str] = []

    def front(asked: str, answers: Sequence[str]) -> Sequence[Step] | str:
        seen.append(f"front {asked} {list(answers)}")
        if answers:
            return f"front again: {answers[-1]}"
        return calls(call("transfer")) if "bill" in asked else f"front: {asked}"

    def billing(asked: str, answers: Sequence[str]) -> Sequence[Step] | str:
        if "back" in asked and not answers:
            return calls(call("hand_back", message="paid"))
        return f"billing: {asked}"

    async with team(kind, tmp_path, {"front": front, "billing": billing}) as agents:
        await member(agents, "billing")
        await member(agents, "front", hand("billing", name="transfer"))
        assert await answer(agents, "front", "hello") == "front: hello"
        assert await answer(agents, "front", "my bill") == "billing: my bill"
        count = len(seen)
        # From now on the other agent answers, and sees what was said.
        assert await answer(agents, "front", "and more", turn_id="more") == "billing: and more"
        assert len(seen) == count
        prompt, _ = agents.engine.prompts[-1]
        assert [one.text for one in prompt.messages[1:]] == [
            "hello", "front: hello", "my bill", "billing: my bill", "and more",
        ]  # fmt: skip
        assert await answer(agents, "front", "back please") == "front again: paid"
        assert await answer(agents, "front", "thanks") == "front: thanks"


@pytest.mark.requirement("team-hand-off")
@pytest.mark.parametrize("shielded", [False, True])
async def test_a_conversation_stays_where_it_was_handed_when_a_turn_is_cut_short(
    shielded: bool, tmp_path: Path
) -> None:
    never = anyio.Event()

    def front(asked: str, _: Sequence[str]) -> Sequence[Step] | str:
        return calls(call("transfer")) if "bill" in asked else f"front: {asked}"

    def billing(asked: str, _: Sequence[str]) -> Sequence[Step] | str:
        return ["begun", never] if "wait" in asked else f"billing: {asked}"

    script = parts({"front": front, "billing": billing})
    async with (
        buses("local", tmp_path) as bus,
        running_agents(bus, ShieldsActor([WordShield()]), script=script) as agents,
    ):
        await member(agents, "billing")
        await member(
            agents,
            "front",
            hand("billing", name="transfer"),
            require_approval={"transfer"},
            input_shields=[shield("forbidden")] if shielded else [],
        )

        async def follow(text: str, turn: str, says: str | None) -> None:
            if says is None:
                with pytest.raises(Cancelled):
                    await answer(agents, "front", text, turn_id=turn)
            else:
                assert await answer(agents, "front", text, turn_id=turn) == says

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow, "my bill", "1", "billing: my bill")
            waiting = await asked_for(agents, "front")
            await agents.turns.approve(
                ApproveRequest("front", "1", waiting, ApprovalDecision.approve)
            )
        # It is handed over, and nobody is asked again.
        assert await answer(agents, "front", "more") == "billing: more"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow, "wait", "2", None)
            with anyio.fail_after(10):
                await agents.engine.wait_for(lambda engine: engine.running == 1)
            await agents.turns.cancel("front", "2")
        assert await answer(agents, "front", "then") == "billing: then"
        if shielded:
            assert "billing" not in await answer(agents, "front", "forbidden")
        assert await answer(agents, "front", "last") == "billing: last"


@pytest.mark.requirement("team-limits")
async def test_depth_and_budget_reach_every_descendant(kind: str, tmp_path: Path) -> None:
    played = {"boss": asks("ask"), "lead": asks("ask", "then {}"), "worker": echoes}
    async with team(kind, tmp_path, played) as agents:
        await member(agents, "worker")
        await member(agents, "lead", sub("worker"))
        await member(agents, "boss", sub("lead"))
        shallow = await answer(agents, "boss", "x", limits=Limits(depth=1))
        assert (
            shallow
            == "so then The agent worker gave no answer: no turns may be started here: they would stand too deep"
        )
        with pytest.raises(BudgetExceeded, match="used up its 1 steps"):
            await answer(agents, "boss", "x", limits=Limits(steps=1))
        # Four: one for the boss, two for the lead (its worker gets none), one for the boss.
        few = await answer(agents, "boss", "x", limits=Limits(steps=4), turn_id="few")
        assert few == (
            "so then The agent worker gave no answer: the turn, with those that it started, has used up its 0 steps of models"
        )
        state = await agents.turns.get("boss", "few")
        assert state.spent.steps == 4
        assert await answer(agents, "boss", "x", limits=Limits(steps=5)) == "so then x"
        with pytest.raises(BudgetExceeded):
            await answer(agents, "boss", "x", limits=Limits(tokens=5))
        whole = await answer(agents, "boss", "x", limits=Limits(tokens=10_000), turn_id="whole")
        assert whole == "so then x"
        state = await agents.turns.get("boss", "whole")
        assert state.limits.tokens == 10_000


@pytest.mark.requirement("team-limits")
async def test_cost_units_are_counted_by_the_models_prices(tmp_path: Path) -> None:
    async with buses("local", tmp_path) as bus:
        played = {"boss": asks("ask"), "worker": echoes}
        async with running_agents(bus, script=parts(played), prices=(1000.0, 2000.0)) as agents:
            await member(agents, "worker")
            await member(agents, "boss", sub("worker"))
            assert await answer(agents, "boss", "x", turn_id="t") == "so x"
            state = await agents.turns.get("boss", "t")
            assert state.spent.cost > state.spent.tokens  # Answers cost twice as much.
            with pytest.raises(BudgetExceeded, match="cost units"):
                await answer(agents, "boss", "x", limits=Limits(cost=state.spent.cost / 2))


@pytest.mark.requirement("team-limits", "team-cancel")
async def test_a_deadline_ends_all_that_runs_below(kind: str, tmp_path: Path) -> None:
    never = anyio.Event()

    def worker(_: str, __: Sequence[str]) -> Sequence[Step]:
        return [never]

    played: dict[str, Part] = {"boss": asks("ask"), "lead": asks("ask"), "worker": worker}
    async with team(kind, tmp_path, played) as agents:
        await member(agents, "worker")
        await member(agents, "lead", sub("worker"))
        await member(agents, "boss", sub("lead"))
        with pytest.raises(DeadlineExceeded):
            await answer(agents, "boss", "x", limits=Limits(seconds=1.0), turn_id="t")
        await all_ended(agents, "boss", "t")


async def all_ended(agents: Agents, agent: str, turn: str) -> list[TurnStatus]:
    """Wait until a turn and all below it have ended, and return how."""
    with anyio.fail_after(10):
        state = await agents.turns.get(agent, turn)
        while state.status not in ("completed", "cancelled", "failed"):
            await anyio.sleep(0.02)  # a turn that was not followed
            state = await agents.turns.get(agent, turn)
    found = [state.status]
    for child in state.children:
        found += await all_ended(agents, child.agent_uuid, child.turn_id)
    return found


@pytest.mark.requirement("team-cancel")
async def test_a_cancel_of_the_root_ends_the_tree_within_a_second(
    kind: str, tmp_path: Path
) -> None:
    never = anyio.Event()

    def worker(_: str, __: Sequence[str]) -> Sequence[Step]:
        return ["begun", never]

    def lead(_: str, answers: Sequence[str]) -> Sequence[Step] | str:
        tasks = [{"message": str(number)} for number in range(3)]
        return answers[0] if answers else calls(call("ask", tasks=tasks))

    played: dict[str, Part] = {"boss": asks("ask"), "lead": lead, "worker": worker}
    async with team(kind, tmp_path, played, executors=2) as agents:
        await member(agents, "worker")
        await member(agents, "lead", fan("worker"))
        await member(agents, "boss", sub("lead"))

        async def follow() -> None:
            with pytest.raises(Cancelled):
                await answer(agents, "boss", "x", turn_id="t")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            with anyio.fail_after(10):
                await agents.engine.wait_for(lambda engine: engine.running == 3)
            begun = anyio.current_time()
            await agents.turns.cancel("boss", "t")
            statuses = await all_ended(agents, "boss", "t")
            assert anyio.current_time() - begun < 1
            assert statuses == [TurnStatus.cancelled] * 5
        assert agents.engine.running == 0


@pytest.mark.requirement("team-cancel", "detached-turns")
async def test_the_turns_of_an_agent_that_is_deleted_end_wherever_they_stand(
    kind: str, tmp_path: Path
) -> None:
    never = anyio.Event()

    def worker(_: str, __: Sequence[str]) -> Sequence[Step]:
        return ["begun", never]

    async with team(kind, tmp_path, {"boss": asks("ask"), "worker": worker}) as agents:
        await member(agents, "worker")
        await member(agents, "boss", sub("worker"))

        async def beside() -> None:
            with pytest.raises(Cancelled, match="the agent was deleted"):
                await answer(agents, "worker", "x", turn_id="beside", detached=True)

        async def above() -> None:
            said = await answer(agents, "boss", "x")
            assert said == "so The agent worker gave no answer: the agent was deleted"

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beside)
            tasks.start_soon(above)
            with anyio.fail_after(10):
                await agents.engine.wait_for(lambda engine: engine.running == 2)
            await agents.system.delete("worker")


@pytest.mark.requirement("team-cycles")
async def test_agents_that_would_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    played: dict[str, Part] = {"a": asks("ask"), "b": asks("ask"), "c": asks("ask")}
    async with team("local", tmp_path, played) as agents:
        with pytest.raises(InvalidRequest, match="a -> a"):
            await member(agents, "a", sub("a"))
        await member(agents, "a")
        await member(agents, "b", sub("a"))
        await member(agents, "c", sub("b"))
        await agents.system.delete("a")
        with pytest.raises(InvalidRequest, match="a -> c -> b -> a"):
            await member(agents, "a", sub("c"))


@pytest.mark.requirement("team-cycles")
async def test_a_cycle_that_came_to_be_is_refused_when_it_is_run(tmp_path: Path) -> None:
    played: dict[str, Part] = {"a": asks("ask"), "b": asks("ask", "then {}")}
    async with team("local", tmp_path, played) as agents:
        await member(agents, "a")
        await member(agents, "b", sub("a"))
        record = await agents.register.record("b")
        await agents.system.delete("a")
        await agents.system.delete("b")
        await member(agents, "b")
        await member(agents, "a", sub("b"))
        from ayllu.schemas import encode

        await agents.register.agents.put("b", encode(record))
        said = await answer(agents, "a", "x")
        assert said == (
            "so then The agent a gave no answer: the agent 'a' waits for this turn itself: a -> b -> a"
        )


@pytest.mark.requirement("team-validation")
async def test_what_is_wrong_with_sub_agents_is_said_at_once(tmp_path: Path) -> None:
    async with team("local", tmp_path, {"x": echoes}) as agents:
        await member(agents, "x")
        with pytest.raises(NotFound, match="there is no agent 'nobody'"):
            await member(agents, "y", sub("nobody"))
        with pytest.raises(InvalidRequest, match="several agents are for `fan_out`"):
            await member(agents, "y", sub("x", "x2"))
        with pytest.raises(InvalidRequest, match="stands for something else"):
            await member(agents, "y", sub("x"), sub("x"))
        with pytest.raises(InvalidRequest, match="named twice"):
            await member(agents, "y", fan("x", "x"))
        with pytest.raises(InvalidRequest, match="stands for something else"):
            await member(agents, "y", sub("x", name="hand_back"))
        with pytest.raises(InvalidRequest, match="is too long"):
            await member(agents, "_" * 160)
            await member(agents, "y", sub("_" * 160))
        with pytest.raises(AylluError) as refused:
            await member(agents, "y", hand("x"), output_shields=[ShieldConfig("llama_guard")])
        assert any("output_shields" in one for one in refused.value.details["problems"])
        assert Unsupported.code


@pytest.mark.requirement("team-failures")
async def test_what_an_agent_cannot_be_asked_goes_back_to_the_model(tmp_path: Path) -> None:
    wrong = itertools.count()

    def boss(asked: str, answers: Sequence[str]) -> Sequence[Step] | str:
        if answers:
            return answers[-1]
        next(wrong)
        return calls(call("ask", **({} if asked == "wrong" else {"message": asked})))

    async with team("local", tmp_path, {"boss": boss, "worker": echoes}) as agents:
        await member(agents, "worker")
        await member(agents, "boss", sub("worker"))
        assert "The arguments are wrong" in await answer(agents, "boss", "wrong")
        await agents.system.delete("worker")
        said = await answer(agents, "boss", "gone")
        assert said == "The agent worker gave no answer: there is no agent 'worker'"


async def asked_for(agents: Agents, agent: str) -> str:
    """Wait until a call of an agent waits for a person, and return its id."""
    with anyio.fail_after(10):
        while not (waiting := [one async for one in agents.turns.approvals(agent)]):
            await anyio.sleep(0.01)
    return waiting[0].call_id


@pytest.mark.requirement("team-failures")
@pytest.mark.parametrize("kind_of_call", list(Delegation))
async def test_a_call_that_people_deny_lets_nobody_take_a_turn(
    kind_of_call: Delegation, tmp_path: Path
) -> None:
    fan_out = kind_of_call is Delegation.fan_out
    wanted: dict[str, Any] = {"tasks": [{"message": "x"}]} if fan_out else {"message": "x"}

    def boss(_: str, answers: Sequence[str]) -> Sequence[Step] | str:
        return answers[-1] if answers else calls(call("ask", **wanted))

    async with team("local", tmp_path, {"boss": boss, "worker": echoes}) as agents:
        await member(agents, "worker")
        await member(agents, "boss", sub("worker", kind=kind_of_call), require_approval={"ask"})

        async def follow() -> None:
            assert await answer(agents, "boss", "go", turn_id="t") == (
                "The call was not approved: not now"
            )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            waiting = await asked_for(agents, "boss")
            await agents.turns.approve(
                ApproveRequest("boss", "t", waiting, ApprovalDecision.deny, "not now")
            )
        assert (await agents.turns.get("boss", "t")).children == []
        assert [turn async for turn in agents.turns.list("worker")] == []


@pytest.mark.requirement("team-failures")
async def test_a_bus_that_is_away_for_a_moment_fails_no_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[str] = []
    append = MemoryStreams.append

    async def flaky(self: MemoryStreams, subject: str, payload: bytes, **options: Any) -> Appended:
        if subject.startswith("ayllu.v1.agent.worker=1F") and not failed:
            failed.append(subject)
            raise BusError("the bus is gone")
        return await append(self, subject, payload, **options)

    monkeypatch.setattr(MemoryStreams, "append", flaky)
    async with team("local", tmp_path, {"boss": asks("ask"), "worker": echoes}) as agents:
        await member(agents, "worker")
        await member(agents, "boss", sub("worker"))
        assert await answer(agents, "boss", "x") == "so x"
    assert failed


@pytest.mark.requirement("team-call")
async def test_the_end_of_a_turn_below_is_not_lost_while_tools_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, finished = anyio.Event(), anyio.Event()
    append, first = MemoryStreams.append, MemoryStreams.first

    async def appended(self: MemoryStreams, subject: str, payload: bytes, **options: Any) -> Any:
        if subject == command_subject("boss") and b'"finished"' in payload:
            finished.set()
        if subject == journal_subject("boss", "t") and b'"answered"' in payload:
            # While the tool's answer is written, the turn below ends; its end is taken behind that.
            gate.set()
            await finished.wait()
            for _ in range(1000):
                await checkpoint()
        return await append(self, subject, payload, **options)

    async def slowly(self: MemoryStreams, *names: Any, **options: Any) -> Any:
        for _ in range(50):
            await checkpoint()
        return await first(self, *names, **options)

    monkeypatch.setattr(MemoryStreams, "append", appended)
    monkeypatch.setattr(MemoryStreams, "first", slowly)

    def boss(_: str, answers: Sequence[str]) -> Sequence[Step] | str:
        return "both" if answers else calls(call("ask", message="x"), NOW)

    def worker(_: str, __: Sequence[str]) -> Sequence[Step]:
        return [gate, "done"]

    script = parts({"boss": boss, "worker": worker})
    async with (
        buses("local", tmp_path) as bus,
        running_agents(bus, WeatherActor(), script=script) as agents,
    ):
        await member(agents, "worker")
        tools: dict[str, Any] = {
            "available_tools": TOOLS[:1],
            "executable_tools": {"weather.now"},
        }
        await member(agents, "boss", sub("worker"), **tools)
        assert await answer(agents, "boss", "go", turn_id="t") == "both"


@pytest.mark.requirement("team-call")
async def test_who_approves_a_call_may_change_what_another_agent_is_asked(tmp_path: Path) -> None:
    async with team("local", tmp_path, {"boss": asks("ask"), "worker": echoes}) as agents:
        await member(agents, "worker")
        await member(agents, "boss", sub("worker"), require_approval={"ask"})

        async def follow() -> None:
            said = await answer(agents, "boss", "go", turn_id="t")
            note = '[Whoever approved the call changed its arguments to {"message":"other"}]'
            assert said == f"so {note}\nother"

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow)
            waiting = await asked_for(agents, "boss")
            await agents.turns.approve(
                ApproveRequest("boss", "t", waiting, arguments={"message": "other"})
            )


def nested(events: Sequence[TurnEvent]) -> list[str]:
    """Return all texts of a tree in the order in which they were told, with the agents that said them."""
    found = []
    for event in events:
        name, one = "", event
        while one.child is not None:
            name, one = one.child.agent_uuid, one.child.event
        if one.event is not None and one.event.response_text_delta:
            found.append(f"{name}:{one.event.response_text_delta}")
    return found


@pytest.mark.requirement("team-events")
async def test_events_of_the_turns_below_stand_in_the_stream_and_are_told_once_from_any_position(
    kind: str, tmp_path: Path
) -> None:
    played = {"boss": asks("ask"), "lead": asks("ask", "then {}"), "worker": echoes}
    async with team(kind, tmp_path, played) as agents:
        await member(agents, "worker")
        await member(agents, "lead", sub("worker"))
        await member(agents, "boss", sub("lead"))
        with anyio.fail_after(20):
            streamed = [
                chunk
                async for chunk in agents.system.stream_execute(
                    asked("boss", "one two", turn_id="t", stream=True)
                )
            ]
        own = [chunk for chunk in streamed if chunk.child is None]
        events = await agents.events("boss", "t")
        assert [event.event for event in events if event.event is not None] == own
        assert [event.index for event in events if event.event is not None] == list(range(len(own)))
        texts = nested(events)
        assert texts == [
            "worker:one", "worker: two", "lead:then", "lead: one", "lead: two",
            ":so", ": then", ": one", ": two",
        ]  # fmt: skip
        children = [event.event.child_turn for event in events if event.event is not None]
        [started] = [child for child in children if child is not None]
        assert isinstance(started, ChildTurn)
        # From behind each event, exactly the rest is told.
        for cut in range(1, len(events)):
            before = events[:cut]
            last = before[-1]
            seen = next((one.child.children for one in before[::-1] if one.child is not None), "")
            index = last.index + (last.event is not None)
            rest = [
                event async for event in agents.turns.events("boss", "t", last.epoch, index, seen)
            ]
            assert nested(before) + nested(rest) == texts, cut
            assert [event.event for event in (*before, *rest) if event.event is not None] == own
