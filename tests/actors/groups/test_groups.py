"""Groups on a bus: agents and humans talk, on both buses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import msgspec
import pytest
from support.buses import buses
from support.groups import Talks, agent, group, human, running_groups

from ayllu.actors.engines.engine import Generation, Prompt
from ayllu.actors.engines.scripted import Step
from ayllu.actors.groups import deciding
from ayllu.actors.groups.hearing import posted
from ayllu.actors.groups.records import JOURNAL, WAKE, journal_subject
from ayllu.bus.bus import Bus
from ayllu.schemas import (
    Conflict,
    GroupEnd,
    GroupEvent,
    GroupEventKind,
    GroupPass,
    GroupPolicy,
    GroupPostRequest,
    GroupStatus,
    InvalidRequest,
    Limits,
    NotFound,
    TurnStatus,
)

pytestmark = pytest.mark.asyncio
K = GroupEventKind
SECONDS = 40


class Words:
    """What agents say: by who is asked; ``gates`` hold answers back until they are opened."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Sequence[Step]]] = {}
        self.gates: dict[str, anyio.Event] = {}

    def say(self, name: str, *answers: Sequence[Step] | str) -> None:
        """Let a member, or the moderator (``""``), answer so, the last answer from then on."""
        self.answers[name] = [[one] if isinstance(one, str) else one for one in answers]

    def hold(self, name: str) -> anyio.Event:
        """Let a member begin to speak, and not end before the gate is opened."""
        gate = self.gates[name] = anyio.Event()
        self.say(name, ["Well", gate, ", yes."])
        return gate

    def __call__(self, prompt: Prompt, _: Generation) -> Sequence[Step]:
        asked = prompt.messages[-1].text
        for name, answers in self.answers.items():
            if (f"You are {name}." if name else "You are the moderator") in asked:
                return answers.pop(0) if len(answers) > 1 else answers[0]
        return ["Hm."]


@pytest.fixture
def words() -> Words:
    return Words()


Talking = Callable[[], AbstractAsyncContextManager[Talks]]


@pytest.fixture(params=["local", "nats"])
def talking(request: pytest.FixtureRequest, tmp_path: Path, words: Words) -> Talking:
    """Serve groups on a bus of each kind."""

    @asynccontextmanager
    async def running() -> AsyncIterator[Talks]:
        with anyio.fail_after(SECONDS):
            async with buses(request.param, tmp_path) as bus, running_groups(bus, words) as talks:
                yield talks

    return running


LOCAL = pytest.mark.parametrize("talking", ["local"], indirect=True)
"""What is the same on every bus."""


def texts(events: Sequence[GroupEvent]) -> list[tuple[str, str]]:
    return [(event.remark.member, event.remark.text) for event in events if event.remark]


def check(events: Sequence[GroupEvent], first: int = 0) -> None:
    assert [event.index for event in events] == list(range(first, first + len(events)))
    assert [event.kind is K.ended for event in events] == [False] * (len(events) - 1) + [True]


@pytest.mark.requirement("group-round-robin", "group-events")
async def test_agents_talk_until_one_approves(talking: Talking, words: Words) -> None:
    words.say("Ann", "A draft.", "A better draft.")
    words.say("Bob", "Bob: No.", "APPROVED")
    async with talking() as talks:
        request = group("g", agent("Ann"), agent("Bob"), until="APPROVED", until_by=["Bob"])
        await talks.groups.create(request)
        events = await talks.events("g")
        check(events)
        assert texts(events) == [
            ("Ann", "A draft."),
            ("Bob", "No."),
            ("Ann", "A better draft."),
            ("Bob", "APPROVED"),
        ]
        state = await talks.groups.get("g")
        assert (state.status, state.end, state.index) == (
            GroupStatus.ended,
            GroupEnd.said,
            len(events),
        )
        assert await talks.events("g", 4) == events[4:]
        assert await talks.events("g", len(events)) == []
        # A turn is told of before it is heard, and stands beside the agent's own conversation.
        [speaking] = [one for one in events if one.kind is K.speaking][-1:]
        turn = await talks.agents.turns.get("bob", str(speaking.turn_id))
        assert turn.status is TurnStatus.completed
        assert state.remarks[-1].turn_id == speaking.turn_id
        said = [one.text for one in talks.agents.engine.prompts[-1][0].messages[1:]]
        assert [said[0], said[1], said[3]] == ["Ann: A draft.", "No.", "Ann: A better draft."]


@pytest.mark.requirement("group-humans", "group-events")
async def test_a_human_takes_part(talking: Talking, words: Words) -> None:
    async with talking() as talks:
        words.hold("Ann")
        request = group("g", agent("Ann"), human("Zoe"), agent("Bob"), max_remarks=3)
        await talks.groups.create(request)
        speaking = await talks.until_kind("g", K.speaking)
        await talks.agents.engine.wait_for(lambda engine: engine.running == 1)
        with pytest.raises(Conflict, match="Ann's"):
            await talks.say("g", "Zoe", "Me!")
        # The tokens of the turn can be followed.
        turn = talks.agents.turns.events("ann", str(speaking.turn_id))
        while (await anext(turn)).event is None:
            pass
        words.gates["Ann"].set()
        waiting = await talks.until_kind("g", K.waiting)
        assert waiting.member == "Zoe"
        state = await talks.groups.get("g")
        assert (state.status, state.waiting_for) == (GroupStatus.waiting, ["Zoe"])
        # Nothing is held: the wake-up is acknowledged, and the one of the post wakes another runner, too.
        talks.runners[0].cancel()
        await talks.runner()
        remark = await talks.say("g", "Zoe", "Hello.", "m1")
        assert (remark.number, remark.message_id) == (2, "m1")
        assert await talks.say("g", "Zoe", "Hello.", "m1") == remark
        with pytest.raises(Conflict, match="another remark"):
            await talks.say("g", "Zoe", "Bye.", "m1")
        events = await talks.events("g")
        check(events)
        assert texts(events) == [("Ann", "Well, yes."), ("Zoe", "Hello."), ("Bob", "Hm.")]
        with pytest.raises(Conflict, match="ended"):
            await talks.say("g", "Zoe", "And?")
        with pytest.raises(InvalidRequest, match="index"):
            await talks.events("g", -1)


@pytest.mark.requirement("group-faults")
async def test_what_nobody_was_told_of_is_done_by_a_runner_that_starts(
    talking: Talking, words: Words
) -> None:
    """As when the process is killed that has just written what a human says."""
    async with talking() as talks:
        for name in ("a", "g"):
            await talks.groups.create(group(name, human("Zoe"), agent("Ann"), max_remarks=2))
            await talks.until_kind(name, K.waiting)
        streams = talks.agents.bus.storage.streams
        while (await streams.state(WAKE.name)).count:
            await anyio.sleep(0.01)
        for runner in talks.runners:
            runner.cancel()
        journal = await talks.register.journal("g")
        said = GroupPostRequest("g", "Zoe", "Hello.")
        await journal.change(lambda known, at: [cast(GroupEvent, posted(known, said, at))])
        # One that cannot be read does not keep it from others.
        odd = await talks.register.journal("a")
        await streams.append(odd.subject, b"[]", msg_id="odd")
        await talks.runner()
        assert texts(await talks.events("g")) == [("Zoe", "Hello."), ("Ann", "Hm.")]


@pytest.mark.requirement("group-humans")
async def test_nothing_is_held_while_a_human_is_waited_for(talking: Talking, words: Words) -> None:
    async with talking() as talks:
        await talks.groups.create(group("g", human("Zoe"), agent("Ann"), max_remarks=2))
        await talks.until_kind("g", K.waiting)
        # The wake-up is gone, and no runner has the lease.
        leases = await talks.agents.bus.storage.key_value("group_leases")
        while (
            await talks.agents.bus.storage.streams.state(WAKE.name)
        ).count or await leases.keys():
            await anyio.sleep(0.01)
        await talks.say("g", "Zoe", "Hello.")
        check(await talks.events("g"))


@pytest.mark.requirement("group-humans")
async def test_a_late_human_is_passed_over_whichever_runner_is_there(
    talking: Talking, words: Words
) -> None:
    async with talking() as talks:
        request = group("g", human("Zoe"), agent("Ann"), human_seconds=1.0, max_remarks=1)
        await talks.groups.create(request)
        await talks.until_kind("g", K.waiting)
        talks.runners[0].cancel()
        await talks.runner()
        events = await talks.events("g")
        check(events)
        assert [event.kind for event in events[1:4]] == [K.waiting, K.passed, K.speaking]
        assert events[2].passed is GroupPass.late
        assert events[2].at >= events[1].until  # type: ignore[operator]


@LOCAL
@pytest.mark.requirement("group-moderator")
async def test_a_moderator_leads(talking: Talking, words: Words) -> None:
    words.say("", "Bob", "Let me think.", "I do not know.", "bob.")
    async with talking() as talks:
        members = [agent("Ann"), agent("Bob"), agent("Cho")]
        request = group("g", *members, policy=GroupPolicy.moderator, moderator="mod", max_remarks=3)
        await talks.groups.create(request)
        events = await talks.events("g")
        check(events)
        assert [name for name, _ in texts(events)] == ["Bob", "Cho", "Bob"]
        unclear = [event.reason for event in events if event.kind is K.unclear]
        assert unclear == ["Let me think.", "I do not know."]
        [fallback] = [event for event in events if event.kind is K.chosen and event.reason]
        assert fallback.member == "Cho"


@pytest.mark.requirement("group-first-to-claim")
async def test_the_first_to_claim_has_the_floor(talking: Talking, words: Words) -> None:
    words.say("Ann", "PASS")
    words.hold("Bob")
    async with talking() as talks:
        members = [agent("Ann"), agent("Bob"), agent("Cho")]
        request = group("g", *members, policy=GroupPolicy.first_to_claim, max_remarks=1)
        await talks.groups.create(request)
        events = await talks.events("g")
        check(events)
        assert texts(events) == [("Cho", "Hm.")]
        [cancelled] = [
            event for event in events if event.kind is K.withdrawn and event.member == "Bob"
        ]
        turn = await talks.agents.turns.get("bob", str(cancelled.turn_id))
        assert turn.status is TurnStatus.cancelled
        await talks.agents.engine.wait_for(lambda engine: engine.running == 0)


@LOCAL
@pytest.mark.requirement("group-first-to-claim", "group-humans")
async def test_a_human_is_faster_than_agents(talking: Talking, words: Words) -> None:
    words.hold("Ann")
    words.hold("Bob")
    async with talking() as talks:
        members = [agent("Ann"), human("Zoe"), agent("Bob")]
        request = group("g", *members, policy=GroupPolicy.first_to_claim, max_remarks=2)
        await talks.groups.create(request)
        await talks.agents.engine.wait_for(lambda engine: engine.running == 2)
        words.say("Ann", "PASS")
        words.say("Bob", "PASS")
        await talks.say("g", "Zoe", "I know.")
        await talks.until_kind("g", K.passed, 2)
        assert (await talks.groups.get("g")).status is GroupStatus.waiting
        await talks.say("g", "Zoe", "That was all.")
        events = await talks.events("g")
        check(events)
        assert texts(events) == [("Zoe", "I know."), ("Zoe", "That was all.")]
        assert [event.kind for event in events].count(K.withdrawn) == 2


@LOCAL
@pytest.mark.requirement("group-limits")
@pytest.mark.parametrize(
    ("limits", "which"), [(Limits(steps=3), "steps"), (Limits(tokens=60), "tokens")]
)
async def test_limits_hold_over_all_turns(
    talking: Talking, words: Words, limits: Limits, which: str
) -> None:
    async with talking() as talks:
        await talks.groups.create(group("g", agent("Ann"), agent("Bob"), limits=limits))
        events = await talks.events("g")
        check(events)
        state = await talks.groups.get("g")
        assert (state.end, state.reason) == (GroupEnd.limits, which)
        assert 1 <= len(state.remarks) <= 3
        if limits.steps is not None:
            assert state.spent.steps == limits.steps
        if limits.tokens is not None:  # They are looked at before each step.
            last = events[-2].spent.tokens
            assert state.spent.tokens - last < limits.tokens


@LOCAL
@pytest.mark.requirement("group-limits")
async def test_time_ends_a_turn_that_runs(talking: Talking, words: Words) -> None:
    words.hold("Ann")
    async with talking() as talks:
        limits = Limits(seconds=0.5)
        await talks.groups.create(group("g", agent("Ann"), agent("Bob"), limits=limits))
        events = await talks.events("g")
        check(events)
        assert (events[-1].end, events[-1].reason) == (GroupEnd.limits, "seconds")
        await talks.agents.engine.wait_for(lambda engine: engine.running == 0)


@pytest.mark.requirement("group-close")
@pytest.mark.parametrize("removed", [False, True], ids=["close", "delete"])
async def test_a_turn_that_runs_is_cancelled(
    talking: Talking, words: Words, removed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deciding, "KEPT_SECONDS", 1.0)
    words.hold("Ann")
    async with talking() as talks:
        request = group("g", agent("Ann"), agent("Bob"))
        await talks.groups.create(request)
        speaking = await talks.until_kind("g", K.speaking)
        await talks.agents.engine.wait_for(lambda engine: engine.running == 1)
        followed: list[GroupEvent] = []

        async def follow(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            async for event in talks.groups.events("g"):
                followed.append(event)
                if event.index == speaking.index:
                    task_status.started()

        async with anyio.create_task_group() as tasks:
            await tasks.start(follow)
            if removed:
                await talks.groups.delete("g")
                with pytest.raises(NotFound):
                    await talks.groups.get("g")
            else:
                await talks.groups.close("g", "enough")
        check(followed)
        end = GroupEnd.deleted if removed else GroupEnd.closed
        assert (followed[-1].end, texts(followed)) == (end, [])
        turn = await talks.agents.turns.get("ann", str(speaking.turn_id))
        assert turn.status is TurnStatus.cancelled
        await talks.agents.engine.wait_for(lambda engine: engine.running == 0)
        if removed:
            await goes(talks.agents.bus, str(speaking.turn_id))


async def goes(bus: Bus, turn: str) -> None:
    """Wait until the journal of a group that was removed is gone."""
    _, born, _ = turn.split(".")
    subject = journal_subject("g", born)
    while await bus.storage.streams.last(JOURNAL.name, subject) is not None:
        await anyio.sleep(0.05)


@LOCAL
@pytest.mark.requirement("group-operations", "group-close")
async def test_groups_come_and_go(talking: Talking, words: Words) -> None:
    async with talking() as talks:
        request = group("g", human("Zoe"), agent("Ann"))
        made = await talks.groups.create(request)
        assert (made.uuid, made.config) == ("g", request)
        await talks.until_kind("g", K.waiting)
        again = await talks.groups.create(request)
        assert (again.created_at, again.status) == (made.created_at, GroupStatus.waiting)
        with pytest.raises(Conflict, match="something else"):
            await talks.groups.create(msgspec.structs.replace(request, max_remarks=3))
        await talks.groups.create(group("h", human("Zoe"), agent("Ann")))
        await talks.say("g", "Zoe", "Hello.")
        listed = [one async for one in talks.groups.list()]
        assert [(one.uuid, one.remarks) for one in listed] == [("g", []), ("h", [])]
        closed = await talks.groups.close("h", "enough")
        assert (closed.status, closed.end, closed.reason) == (
            GroupStatus.ended,
            GroupEnd.closed,
            "enough",
        )
        assert await talks.groups.close("h") == closed
        await talks.groups.delete("g")
        # The name is free; nothing of the old conversation is there.
        other = await talks.groups.create(msgspec.structs.replace(request, topic="Alpacas"))
        assert other.remarks == []
        events = await anext(talks.groups.events("g"))
        assert events.config is not None
        assert events.config.topic == "Alpacas"


@LOCAL
@pytest.mark.requirement("group-operations")
async def test_what_is_not_there(talking: Talking, words: Words) -> None:
    async with talking() as talks:
        with pytest.raises(InvalidRequest, match="no agent 'eve', 'sys'"):
            await talks.groups.create(
                group(
                    "g",
                    agent("Eve"),
                    agent("Ann"),
                    policy=GroupPolicy.moderator,
                    moderator="sys",
                )
            )
        calls: list[Any] = [talks.groups.get, talks.groups.delete, talks.groups.close]
        for call in (*calls, lambda name: talks.say(name, "Zoe", "x"), talks.events):
            with pytest.raises(NotFound, match="'nothing'"):
                await call("nothing")
        with pytest.raises(InvalidRequest, match="too long"):
            await talks.groups.create(group("\U0001f999" * 64, agent("Ann"), agent("Bob")))
        with pytest.raises(InvalidRequest, match="reason"):
            await talks.groups.close("g", "x" * 2000)
        # An agent that is removed is passed over.
        await talks.groups.create(group("g", agent("Ann"), agent("Bob"), human("Zoe")))
        await talks.until_kind("g", K.waiting)
        await talks.agents.system.delete("ann")
        await talks.say("g", "Zoe", "Ann?")
        passed = await talks.until_kind("g", K.passed)
        assert (passed.member, passed.passed) == ("Ann", GroupPass.failed)
        assert passed.error is not None
        assert passed.error.code == "not_found"
