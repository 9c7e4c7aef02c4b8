"""What runners and journals do where others write, hang, or are away."""

from __future__ import annotations

import time
from typing import Any, cast

import anyio
import pytest
from support.groups import agent, group, human, running_groups

from ayllu.actors.agents.actor import AgenticSystemActor
from ayllu.actors.groups import journal as journals
from ayllu.actors.groups import runner as runners
from ayllu.actors.groups.actor import GroupsActor
from ayllu.actors.groups.conversation import Ask, Conversation, moment
from ayllu.actors.groups.deciding import next_action
from ayllu.actors.groups.journal import Fenced, Journal
from ayllu.actors.groups.records import (
    JOURNAL,
    LEASE_BUCKET,
    WAKE,
    journal_subject,
    wake_subject,
    written,
)
from ayllu.actors.groups.register import open_register
from ayllu.actors.groups.turns import GroupTurns, outcome_of
from ayllu.actors.leases import lease_bucket, take_lease
from ayllu.bus import local_bus
from ayllu.bus.deadletters import letters
from ayllu.schemas import (
    AgenticSystem,
    AgenticSystemExecuteRequest,
    BusError,
    GroupEnd,
    GroupEventKind,
    GroupPostRequest,
    GroupRemark,
    Limits,
    NotFound,
    Overloaded,
    Turn,
    TurnStatus,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("group-faults")]
K = GroupEventKind
REQUEST = group("g", human("Zoe"), agent("Ann"))
"""A group in which nothing happens but what the test writes, since no runner is there."""


async def test_who_has_not_read_all_does_not_write() -> None:
    async with local_bus() as bus:
        register = await open_register(bus)
        first = await register.create(REQUEST)
        second = await register.journal("g")
        await first.write([first.conversation.event(K.closing, time.time())])
        with pytest.raises(Fenced):
            await second.write([second.conversation.event(K.closing, time.time())])
        await second.load()
        assert second.conversation.index == first.conversation.index == 2
        tries = 0

        def decide(conversation: Any, at: float) -> list[Any]:
            nonlocal tries
            tries += 1
            return [conversation.event(K.closing, at)]

        class Late(Journal):
            """Somebody else is always faster, a few times."""

            async def load(self) -> None:
                await super().load()
                if tries < 2:
                    await first.load()
                    await first.write([first.conversation.event(K.closing, time.time())])

        late = Late(bus, "g", first.conversation.born)
        await late.change(decide)
        assert tries == 3
        assert late.conversation.index == 5


async def test_there_are_so_many_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "TRIES", 3)

    class Never(Journal):
        async def write(self, events: list[Any]) -> None:
            raise Fenced

    async with local_bus() as bus:
        register = await open_register(bus)
        born = (await register.create(REQUEST)).conversation.born
        with pytest.raises(BusError, match="too many"):
            await Never(bus, "g", born).change(lambda conversation, at: [])


async def test_a_group_whose_journal_is_gone_is_none() -> None:
    async with local_bus() as bus:
        register = await open_register(bus)
        made = await register.create(REQUEST)
        await bus.storage.streams.purge("GROUPS", made.subject)
        with pytest.raises(NotFound):
            await register.journal("g")
        await register.forget("g", "another one that had the name")
        assert await register.names() == ["g"]
        await GroupsActor(register).delete("g")
        assert await register.names() == []


async def test_what_cannot_be_read_becomes_a_dead_letter() -> None:
    async with local_bus() as bus, running_groups(bus) as talks:
        with anyio.fail_after(10):
            streams = bus.storage.streams
            await streams.append(journal_subject("odd", "1"), b"[]", msg_id="1")
            await streams.append(wake_subject("odd", "1"), b"", msg_id="2")
            await streams.append("ayllu.v1.wake.group.x.=zz", b"", msg_id="3")
            while not (found := await letters(bus.storage)):
                await anyio.sleep(0.01)
            [letter] = found
            assert letter.subject == wake_subject("odd", "1")
            assert "an entry that is none" in letter.reason
            # Others are not held up.
            await talks.groups.create(group("g", agent("Ann"), agent("Bob"), max_remarks=1))
            assert (await talks.events("g"))[-1].kind is K.ended
            while (await streams.state(WAKE.name)).count:
                await anyio.sleep(0.01)


async def test_a_journal_that_nobody_can_read_holds_up_no_other_and_can_be_removed() -> None:
    """An event that cannot happen: somebody else on the bus wrote it."""
    async with local_bus() as bus, running_groups(bus) as talks:
        with anyio.fail_after(10):
            streams = bus.storage.streams
            await talks.groups.create(group("odd", human("Zoe"), human("Ann")))
            await talks.until_kind("odd", K.waiting)
            journal = await talks.register.journal("odd")
            remark = GroupRemark(1, "Nobody", "Hi.", moment(0.0))
            event = journal.conversation.event(K.remark, 0.0, member="Nobody", remark=remark)
            await streams.append(journal.subject, written([event]), msg_id="odd")
            await talks.register.wake("odd", journal.conversation.born)
            while not await letters(bus.storage):
                await anyio.sleep(0.01)
            await talks.groups.create(group("g", agent("Ann"), agent("Bob"), max_remarks=1))
            assert (await talks.events("g"))[-1].kind is K.ended
            assert [one.uuid async for one in talks.groups.list()] == ["g"]
            with pytest.raises(BusError, match="an event that is none"):
                await talks.groups.get("odd")
            await talks.groups.delete("odd")
            with pytest.raises(NotFound):
                await talks.groups.get("odd")
            assert await streams.first(JOURNAL.name, journal.subject) is None


async def test_a_group_that_we_fail_on_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(conversation: Conversation, at: float) -> Any:
        if conversation.config is not None and conversation.group.uuid == "odd":
            raise ZeroDivisionError
        return next_action(conversation, at)

    monkeypatch.setattr("ayllu.actors.groups.work.next_action", failing)
    async with local_bus() as bus, running_groups(bus) as talks:
        with anyio.fail_after(10):
            await talks.groups.create(group("odd", agent("Ann"), agent("Bob"), max_remarks=1))
            while not (found := await letters(bus.storage)):
                await anyio.sleep(0.01)
            assert "ZeroDivisionError" in found[0].reason
            await talks.groups.create(group("g", agent("Ann"), agent("Bob"), max_remarks=1))
            assert (await talks.events("g"))[-1].kind is K.ended
            # Who wakes it again finds it as it was.
            monkeypatch.undo()
            await talks.groups.close("odd")
            assert (await talks.events("odd"))[-1].end is GroupEnd.closed


async def test_a_bus_that_is_away_while_turns_are_heard_ends_no_runner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runners, "RETRY_SECONDS", 0.05)
    changed, failed = Journal.changed, 0

    async def away(journal: Journal) -> None:
        nonlocal failed
        failed += 1
        if failed < 3:
            raise BusError("no answer")
        await changed(journal)

    monkeypatch.setattr(Journal, "changed", away)
    async with local_bus() as bus, running_groups(bus, "slow:5") as talks:
        with anyio.fail_after(20):
            await talks.groups.create(group("g", agent("Ann"), agent("Bob"), max_remarks=1))
            assert (await talks.events("g"))[-1].end is GroupEnd.max_remarks
    assert failed >= 3


async def test_of_many_wake_ups_that_come_while_it_works_one_is_kept() -> None:
    async with local_bus() as bus, running_groups(bus, "stall:2") as talks:
        with anyio.fail_after(20):
            await talks.groups.create(group("g", agent("Ann"), agent("Bob")))
            speaking = await talks.until_kind("g", K.speaking)
            born = str(speaking.turn_id).split(".")[1]
            for _ in range(50):
                await talks.register.wake("g", born)
            while (await bus.storage.streams.state(WAKE.name)).count > 2:
                await anyio.sleep(0.01)
            await talks.groups.close("g")
            assert (await talks.events("g"))[-1].kind is K.ended
            while (await bus.storage.streams.state(WAKE.name)).count:
                await anyio.sleep(0.01)


async def test_who_hangs_up_when_it_has_spoken_was_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is cancelled between what it writes and the wake-up of the group."""
    write, scope = Journal.write, anyio.CancelScope()

    async def then_cancelled(journal: Journal, events: list[Any]) -> None:
        await write(journal, events)
        if events and events[0].kind in cancelling:
            scope.cancel()

    async def append(*args: Any, **options: Any) -> Any:
        await anyio.lowlevel.checkpoint()  # As a bus in another process does.
        return await appended(*args, **options)

    monkeypatch.setattr(Journal, "write", then_cancelled)
    async with local_bus() as bus, running_groups(bus) as talks:
        appended = bus.storage.streams.append
        monkeypatch.setattr(bus.storage.streams, "append", append)
        actor = GroupsActor(talks.register)
        with anyio.fail_after(10):
            cancelling = (K.created,)
            with scope:
                await actor.create(group("g", human("Zoe"), agent("Ann"), max_remarks=2))
            assert scope.cancel_called
            await talks.until_kind("g", K.waiting)
            cancelling, scope = (K.remark,), anyio.CancelScope()
            with scope:
                await actor.post(GroupPostRequest("g", "Zoe", "Good bye."))
            assert scope.cancel_called
            assert (await talks.events("g"))[-1].end is GroupEnd.max_remarks


async def test_a_runner_lets_go_when_its_lease_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runners, "BUSY_SECONDS", 0.05)
    async with local_bus() as bus, running_groups(bus, "stall:2") as talks:
        with anyio.fail_after(20):
            await talks.groups.create(group("g", agent("Ann"), agent("Bob"), max_remarks=1))
            speaking = await talks.until_kind("g", K.speaking)
            born = str(speaking.turn_id).split(".")[1]
            leases = await lease_bucket(bus, LEASE_BUCKET)
            await leases.delete(born)
            while await take_lease(leases, born, "other") is None:
                await anyio.sleep(0.01)
            while "the lease on the group 'g' was lost" not in caplog.text:
                await anyio.sleep(0.01)
            entry = await leases.get(born)
            assert entry is not None
            assert entry.value == b"other"
            await talks.groups.close("g")
            await leases.delete(born)
            assert (await talks.events("g"))[-1].kind is K.ended


async def test_a_turn_is_heard_and_one_that_never_began_has_taken_nothing() -> None:
    async with local_bus() as bus, running_groups(bus, runners=0) as talks:
        with anyio.fail_after(20):
            made = await talks.groups.create(group("g", agent("Ann"), agent("Bob")))
            conversation = (await talks.register.journal(made.uuid)).conversation
            ask = Ask("t", "ann", "Ann", Limits(), 0)
            outcome = await GroupTurns(bus).outcome(conversation, ask)
            assert outcome.text == "1 2 3"
            # A turn that was never begun has taken nothing.
            gone = await GroupTurns(bus).cancel(Ask("other", "ann", "Ann", Limits(), 0))
            assert gone.error is not None
            assert gone.error.code == "not_found"


class Busy:
    """Refuses the first requests, and then asks the real one."""

    def __init__(self, inner: AgenticSystemActor) -> None:
        self._inner = inner
        self.refused = 0

    async def execute(self, request: AgenticSystemExecuteRequest) -> Any:
        if self.refused < 3:
            self.refused += 1
            raise Overloaded("later") if self.refused < 3 else BusError("lost")
        return await self._inner.execute(request)


async def test_what_is_refused_for_a_moment_is_tried_again() -> None:
    async with local_bus() as bus, running_groups(bus, runners=0) as talks:
        with anyio.fail_after(20):
            made = await talks.groups.create(group("g", agent("Ann"), agent("Bob")))
            conversation = (await talks.register.journal(made.uuid)).conversation
            busy = Busy(AgenticSystemActor(talks.agents.register))
            turns = GroupTurns(bus)
            turns._system = cast(AgenticSystem, busy)
            ask = Ask("t", "ann", "Ann", Limits(), 0)
            assert (await turns.outcome(conversation, ask)).text == "1 2 3"
            assert busy.refused == 3


async def test_a_turn_that_was_cancelled_has_no_text() -> None:
    turn = Turn("a", "t", TurnStatus.cancelled, 1, 1)
    assert outcome_of(turn).error is not None
