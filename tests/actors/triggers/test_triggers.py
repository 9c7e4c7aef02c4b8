"""Triggers on both buses: created, noticed, answered once, removed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup
from support.buses import buses
from support.nats import killed_and_started
from support.processes import running_support, support_process

from ayllu.actors.agents.desk import AGENT_BUCKET
from ayllu.actors.agents.streams import AGENTS, inbox_subject
from ayllu.actors.events import EVENTS, event_subject, publish_event
from ayllu.actors.patience import persistently
from ayllu.actors.triggers import worker as worker_module
from ayllu.actors.triggers.actor import TriggersActor
from ayllu.actors.triggers.records import SIGNAL, Counted, TriggerRecord
from ayllu.actors.triggers.shelf import Shelf, open_shelf
from ayllu.actors.triggers.worker import TriggerWorker
from ayllu.bus.bus import Bus, connect
from ayllu.bus.client import client
from ayllu.bus.jetstream import JetStreamStreams
from ayllu.bus.processes import stop_process
from ayllu.bus.server import embedded_server
from ayllu.bus.service import serve
from ayllu.schemas import (
    AgenticSystemExecuteRequest,
    And,
    BusError,
    Conflict,
    Eq,
    Exists,
    InvalidRequest,
    Limits,
    Not,
    NotFound,
    Or,
    Schedule,
    ScheduleDue,
    TriggerCreateRequest,
    TriggerPreviewRequest,
    Triggers,
    TurnEnded,
    TurnStatus,
    decode,
    encode,
)

pytestmark = pytest.mark.asyncio

ROOT = "ayllu.v1.event"
ORDERS = f"{ROOT}.shop.order"


@dataclass
class Running:
    """Triggers that are served on a bus."""

    bus: Bus
    shelf: Shelf
    api: Triggers
    tasks: TaskGroup

    async def create(self, name: str, **config: Any) -> None:
        await self.api.create(request(name, **config))

    async def publish(self, subject: str, payload: bytes, msg_id: str = "") -> int:
        return (await self.bus.storage.streams.append(subject, payload, msg_id=msg_id)).sequence

    async def worker(self) -> anyio.CancelScope:
        """Start another worker, and return what ends it."""
        scope = anyio.CancelScope()

        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with scope:
                await TriggerWorker(self.shelf, ack_wait=1.0).run(task_status=task_status)

        await self.tasks.start(run)
        return scope

    async def inbox(self, agent: str, count: int) -> list[AgenticSystemExecuteRequest]:
        """Return what an agent is told, when so many messages are there."""
        found: list[AgenticSystemExecuteRequest] = []
        streams = self.bus.storage.streams
        with anyio.fail_after(30):
            async with streams.read(AGENTS.name, inbox_subject(agent)) as entries:
                while len(found) < count:
                    entry = await anext(entries)
                    found.append(decode(entry.payload, AgenticSystemExecuteRequest))
        return found

    async def counted(self, name: str, **wanted: int) -> None:
        """Wait until a trigger has counted so much; counting is late by design."""
        with anyio.fail_after(30):
            while True:
                now = await self.api.get(name)
                if {key: getattr(now, key) for key in wanted} == wanted:
                    return
                await anyio.sleep(0.05)


def request(name: str, **config: Any) -> TriggerCreateRequest:
    return TriggerCreateRequest(name, **{"agent_id": "clerk", "subject": "shop.order", **config})


async def add_agents(bus: Bus, *names: str) -> None:
    agents = await bus.storage.key_value(AGENT_BUCKET)
    for name in names:
        await agents.put(name, b"{}")


@asynccontextmanager
async def triggers(kind: str, folder: Path, *, workers: int = 1) -> AsyncIterator[Running]:
    async with buses(kind, folder) as bus, anyio.create_task_group() as tasks:
        shelf = await open_shelf(bus)
        await tasks.start(serve, bus, TriggersActor(shelf))
        running = Running(bus, shelf, client(Triggers, bus), tasks)
        await add_agents(bus, "clerk")
        for _ in range(workers):
            await running.worker()
        yield running
        tasks.cancel_scope.cancel()


both = pytest.mark.parametrize("kind", ["local", "nats"])


@pytest.fixture(autouse=True)
def counting_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "COUNT_SECONDS", 0.05)


@both
@pytest.mark.requirement("trigger-once", "trigger-template")
async def test_an_event_starts_an_agent(kind: str, tmp_path: Path) -> None:
    async with triggers(kind, tmp_path) as running:
        await running.create("orders", template="Order: $item", limits=Limits(steps=4))
        sequence = await running.publish(ORDERS, b'{"item": "tea"}')
        [told] = await running.inbox("clerk", 1)
        assert told.messages[0].content == "Order: tea"
        assert told.agent_uuid == "clerk"
        assert told.limits == Limits(steps=4)
        assert told.cause is not None
        assert (told.cause.trigger, told.cause.subject) == ("orders", ORDERS)
        assert (told.cause.sequence, told.cause.chain) == (sequence, 1)
        await running.counted("orders", fired=1, skipped=0, refused=0)
        found = await running.api.get("orders")
        assert found.last_fired_at is not None
        assert found.last_fired_at >= found.created_at
        assert found.subject == ORDERS


@both
@pytest.mark.requirement("trigger-after")
async def test_only_what_comes_after_its_creation_is_answered(kind: str, tmp_path: Path) -> None:
    async with triggers(kind, tmp_path, workers=0) as running:
        await running.publish(ORDERS, b'{"n": 1}')
        await running.create("orders", template="$n")
        await running.publish(ORDERS, b'{"n": 2}')
        await running.worker()
        await running.publish(ORDERS, b'{"n": 3}')
        told = await running.inbox("clerk", 2)
        assert [one.messages[0].content for one in told] == ["2", "3"]


@both
@pytest.mark.requirement("trigger-filter", "trigger-events", "trigger-told")
async def test_what_starts_nothing_is_counted_and_told(kind: str, tmp_path: Path) -> None:
    async with triggers(kind, tmp_path) as running:
        await running.create("orders", template="$item", filter=Eq("paid", True))
        await running.publish(ORDERS, b"no json")
        await running.publish(ORDERS, b'{"item": "tea", "paid": false}')
        await running.publish(ORDERS, b'{"paid": true}')
        await running.publish(ORDERS, b'{"item": "maize", "paid": true}')
        [told] = await running.inbox("clerk", 1)
        assert told.messages[0].content == "maize"
        await running.counted("orders", fired=1, skipped=1, refused=2)
        assert "no field 'item'" in (await running.api.get("orders")).last_error


@both
@pytest.mark.requirement("trigger-agent-gone", "trigger-told")
async def test_an_agent_that_is_gone_is_told_of(kind: str, tmp_path: Path) -> None:
    async with triggers(kind, tmp_path) as running:
        await running.create("orders")
        await (await running.bus.storage.key_value(AGENT_BUCKET)).delete("clerk")
        await running.publish(ORDERS, b"{}")
        await running.counted("orders", fired=0, refused=1)
        assert "no agent 'clerk'" in (await running.api.get("orders")).last_error
        assert await running.bus.storage.streams.last(AGENTS.name, inbox_subject("clerk")) is None


@both
@pytest.mark.requirement("trigger-deleted")
async def test_a_trigger_that_is_removed_answers_no_more(kind: str, tmp_path: Path) -> None:
    async with triggers(kind, tmp_path, workers=2) as running:
        await running.create("orders", template="old $n")
        await running.create("others", template="other $n")
        await running.publish(ORDERS, b'{"n": 1}')
        await running.inbox("clerk", 2)
        await running.api.delete("orders")
        await running.publish(ORDERS, b'{"n": 2}')
        await running.create("orders", template="new $n")
        await running.publish(ORDERS, b'{"n": 3}')
        told = {str(one.messages[0].content) for one in await running.inbox("clerk", 5)}
        assert told == {"old 1", "other 1", "other 2", "new 3", "other 3"}
        await running.counted("orders", fired=1)
        await running.api.delete("orders")
        with pytest.raises(NotFound):
            await running.api.get("orders")
        with pytest.raises(NotFound):
            await running.api.delete("orders")
        assert [one.name async for one in running.api.list()] == ["others"]


@pytest.mark.requirement("trigger-deleted")
async def test_what_is_left_of_a_removed_trigger_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "RETRY_SECONDS", 0.05)
    async with triggers("local", tmp_path) as running:
        await running.create("orders")
        await running.publish(ORDERS, b"{}")
        await running.counted("orders", fired=1)
        record = await running.shelf.record("orders")
        clear, left, cleared = Shelf.clear, [3], anyio.Event()

        async def failing(shelf: Shelf, gone: TriggerRecord) -> None:
            left[0] -= 1
            if left[0]:
                raise BusError("away")
            await clear(shelf, gone)
            cleared.set()

        monkeypatch.setattr(Shelf, "clear", failing)
        with pytest.raises(BusError):
            await running.api.delete("orders")
        with anyio.fail_after(10):
            await cleared.wait()
        assert await running.shelf.counted(record) == Counted()


@both
@pytest.mark.requirement("trigger-noticed")
async def test_a_trigger_is_noticed_without_a_signal(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "SCAN_SECONDS", 0.2)
    monkeypatch.setattr("ayllu.actors.triggers.shelf.SIGNAL", f"{SIGNAL}.lost")
    async with triggers(kind, tmp_path) as running:
        await running.create("orders", template="$n")
        await running.publish(ORDERS, b'{"n": 1}')
        await running.inbox("clerk", 1)


@pytest.mark.requirement("trigger-noticed")
async def test_signals_of_nothing_do_no_harm(tmp_path: Path) -> None:
    async with triggers("local", tmp_path) as running:
        for payload in (b"", b"nobody", b"\xff", b"x" * 500, b"y" * 5000):
            await running.bus.transport.publish(SIGNAL, payload)
        await running.create("orders")
        await running.publish(ORDERS, b"{}")
        await running.inbox("clerk", 1)


@pytest.mark.requirement("trigger-checked")
async def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    async with triggers("local", tmp_path, workers=0) as running:
        with pytest.raises(InvalidRequest) as caught:
            await running.create(
                "bad",
                agent_id="nobody",
                subject="turn.clerk.completed",
                template="$nothing",
                filter=Eq("sttus", "completed"),
                schedule=Schedule(cron="0 99 * * *"),
            )
        problems = caught.value.details["problems"]
        assert len(problems) == 3
        assert "either a `subject` or a `schedule`" in problems[0]
        assert "hour" in problems[1]
        assert "nobody" in problems[2]
        with pytest.raises(InvalidRequest) as caught:
            await running.create(
                "bad", subject="turn.*.completed", template="$nothing", filter=Eq("sttus", 1)
            )
        assert len(caught.value.details["problems"]) == 2
        with pytest.raises(NotFound):
            await running.create("bad", agent_id="nobody")
        assert [one async for one in running.api.list()] == []


@pytest.mark.requirement("trigger-checked")
async def test_filters_are_looked_at_all_the_way_down(tmp_path: Path) -> None:
    async with triggers("local", tmp_path, workers=0) as running:
        wanted = And((Or((Eq("status", 1), Exists("sttus"))), Not(Eq("spent.toast", 1))))
        with pytest.raises(InvalidRequest) as caught:
            await running.create("bad", subject="turn.>", filter=wanted)
        first, second = caught.value.details["problems"]
        assert "'spent.toast'" in first
        assert "'sttus'" in second
        # Of other events nothing is known.
        await running.create("good", filter=wanted)
        with pytest.raises(InvalidRequest, match="too long"):
            await running.create("bad", agent_id="\U0001f999" * 160)
        with pytest.raises(InvalidRequest, match="too long"):
            await running.create("\U0001f999" * 160)


@pytest.mark.requirement("trigger-told")
async def test_an_event_that_we_fail_on_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with triggers("local", tmp_path) as running:
        await running.create("orders", template="$n")

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(worker_module, "answer", fail)
            await running.publish(ORDERS, b'{"n": 1}')
            await running.counted("orders", refused=1)
        await running.publish(ORDERS, b'{"n": 2}')
        [told] = await running.inbox("clerk", 1)
        assert told.messages[0].content == "2"
        assert "ZeroDivisionError" in (await running.api.get("orders")).last_error


@pytest.mark.requirement("trigger-told")
async def test_what_no_inbox_takes_is_told(tmp_path: Path) -> None:
    async with triggers("local", tmp_path) as running:
        await running.create("orders")
        del running.bus.storage.streams._streams[AGENTS.name]  # type: ignore[attr-defined]
        await running.publish(ORDERS, b"{}")
        await running.counted("orders", refused=1)
        assert "no stream takes" in (await running.api.get("orders")).last_error


@both
@pytest.mark.requirement("trigger-once", "trigger-noticed")
async def test_what_fails_for_a_while_is_done_later(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(worker_module, "SCAN_SECONDS", 0.05)
    failures = {"find": 2, "names": 2}

    def failing(name: str) -> None:
        works = getattr(Shelf, name)

        async def fail(self: Shelf, *args: Any) -> Any:
            if failures[name]:
                failures[name] -= 1
                raise BusError("away")
            return await works(self, *args)

        monkeypatch.setattr(Shelf, name, fail)

    async with triggers(kind, tmp_path) as running:
        failing("find")
        failing("names")
        await running.bus.transport.publish(SIGNAL, b"orders")
        with anyio.fail_after(5):
            while any(failures.values()):
                await anyio.sleep(0.01)
        await running.create("orders", template="$n")
        await running.publish(ORDERS, b'{"n": 1}')
        await running.inbox("clerk", 1)
        agents = running.shelf.agents
        works, left = agents.get, [2]

        async def get(key: str) -> Any:
            if left[0]:
                left[0] -= 1
                raise BusError("away")
            return await works(key)

        monkeypatch.setattr(agents, "get", get)
        await running.publish(ORDERS, b'{"n": 2}')
        told = await running.inbox("clerk", 2)
        assert [one.messages[0].content for one in told] == ["1", "2"]
        assert left == [0]
        await running.counted("orders", fired=2, refused=0)


@pytest.mark.requirement("trigger-schedule")
async def test_what_was_due_long_ago_is_not_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with triggers("local", tmp_path, workers=0) as running:
        await running.create("tick", subject=None, schedule=Schedule(every=100))
        now = datetime.now(UTC)
        times = [now - timedelta(seconds=90), now - timedelta(seconds=5)]
        asked: list[datetime] = []

        def due(_: object, __: object, after: datetime) -> datetime | None:
            asked.append(after)
            return times.pop(0) if times else None

        monkeypatch.setattr(worker_module, "next_due", due)
        scope = await running.worker()
        event = f"{ROOT}.schedule.tick.due"
        with anyio.fail_after(5):
            async with running.bus.storage.streams.read(EVENTS.name, event) as entries:
                told = decode((await anext(entries)).payload, ScheduleDue)
            while len(asked) < 3:
                await anyio.sleep(0.01)
        scope.cancel()
        assert told.at == now - timedelta(seconds=5)
        assert asked == sorted(asked)
        assert (await running.bus.storage.streams.state(EVENTS.name)).count == 1


@both
@pytest.mark.requirement("trigger-created-once")
async def test_the_same_request_again_is_the_same_trigger(kind: str, tmp_path: Path) -> None:
    async with triggers(kind, tmp_path, workers=0) as running:
        first = await running.api.create(request("orders"))
        assert await running.api.create(request("orders")) == first
        with pytest.raises(Conflict):
            await running.create("orders", template="another")


@pytest.mark.requirement("trigger-preview")
async def test_a_preview_starts_nothing(tmp_path: Path) -> None:
    async with triggers("local", tmp_path) as running:
        await running.create("orders", template="$item", filter=Eq("paid", True))
        preview = running.api.preview
        seen = await preview(TriggerPreviewRequest("orders", {"item": "tea", "paid": True}))
        assert (seen.starts, seen.message) == (True, "tea")
        seen = await preview(TriggerPreviewRequest("orders", {"item": "tea"}))
        assert (seen.starts, seen.reason) == (False, "it does not pass the filter")
        seen = await preview(TriggerPreviewRequest("orders", {"paid": True}))
        assert not seen.starts
        assert "item" in seen.reason
        with pytest.raises(NotFound):
            await preview(TriggerPreviewRequest("others"))
        assert await running.bus.storage.streams.last(AGENTS.name, inbox_subject("clerk")) is None


@both
@pytest.mark.requirement("trigger-schedule")
async def test_a_schedule_is_due_once_for_all_workers(kind: str, tmp_path: Path) -> None:
    async with triggers(kind, tmp_path, workers=3) as running:
        await running.create("tick", subject=None, schedule=Schedule(every=1), template="$at")
        created = await running.api.get("tick")
        assert created.next_at is not None
        told = await running.inbox("clerk", 2)
        times = [datetime.fromisoformat(str(one.messages[0].content)) for one in told]
        first, second = ((at - created.created_at).total_seconds() for at in times)
        # A machine that is busy may miss one, and none is told twice.
        assert (created.next_at - created.created_at).total_seconds() % 1 == 0
        assert (first % 1, second % 1) == (0, 0)
        assert 1 <= first < second
        assert told[0].cause is not None
        assert told[0].cause.subject == f"{ROOT}.schedule.tick.due"


@both
@pytest.mark.requirement("trigger-schedule")
async def test_what_was_told_to_be_due_is_not_told_again(kind: str, tmp_path: Path) -> None:
    async with triggers(kind, tmp_path, workers=0) as running:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        # An earlier trigger of its name, of which a clock that was wrong has told.
        later = ScheduleDue("tick", at + timedelta(days=3000))
        await running.publish(f"{ROOT}.schedule.tick.due", encode(later), "earlier")
        await running.create("tick", subject=None, schedule=Schedule(every=1))
        record = await running.shelf.record("tick")
        worker = TriggerWorker(running.shelf)
        await worker._due(record, at)
        assert (await running.bus.storage.streams.state(EVENTS.name)).count == 2
        # As from a worker whose clock is behind by more than the bus remembers ids.
        await running.publish(f"{ROOT}.schedule.tick.due", encode(ScheduleDue("tick", at)), "other")
        before = (await running.bus.storage.streams.state(EVENTS.name)).last
        await worker._due(record, at)
        assert (await running.bus.storage.streams.state(EVENTS.name)).last == before


@both
@pytest.mark.requirement("trigger-once")
async def test_workers_share_the_events(kind: str, tmp_path: Path) -> None:
    async with triggers(kind, tmp_path, workers=3) as running:
        await running.create("orders", template="$n")
        for number in range(60):
            await running.publish(ORDERS, b'{"n": %d}' % number)
        told = await running.inbox("clerk", 60)
        assert sorted(int(str(one.messages[0].content)) for one in told) == list(range(60))
        await running.counted("orders", fired=60)


@pytest.mark.requirement("trigger-once")
async def test_what_a_worker_that_ends_has_in_hands_is_answered_at_once(tmp_path: Path) -> None:
    async with triggers("nats", tmp_path, workers=0) as running:
        first = await running.worker()
        await running.create("orders", template="$n")
        for number in range(30):
            await running.publish(ORDERS, b'{"n": %d}' % number)
        await running.inbox("clerk", 5)
        first.cancel()
        await running.worker()
        told = await running.inbox("clerk", 30)
        assert {int(str(one.messages[0].content)) for one in told} == set(range(30))


@pytest.mark.requirement("trigger-once")
async def test_killed_workers_start_each_turn_once(tmp_path: Path) -> None:
    bursts, size = 8, 25
    points = Random(11)
    async with embedded_server(tmp_path / "nats") as server, connect(server.url) as bus:
        shelf = await open_shelf(bus)
        await add_agents(bus, "clerk")
        actor = TriggersActor(shelf)
        await actor.create(request("orders", template="$n"))
        streams = bus.storage.streams
        with anyio.fail_after(60):
            for burst in range(bursts):
                process = await support_process("trigger_process", server.url, "1")
                told = (await streams.state(AGENTS.name)).last + points.randrange(size)
                for number in range(size * burst, size * (burst + 1)):
                    await streams.append(ORDERS, b'{"n": %d}' % number, msg_id=f"order {number}")
                while (await streams.state(AGENTS.name)).last < told:
                    await anyio.lowlevel.checkpoint()
                process.kill()
                await stop_process(process, patience=5)
            async with running_support("trigger_process", server.url, "1"):
                again = await answered(bus, (await shelf.record("orders")).consumer)
            async with anyio.create_task_group() as tasks:
                found = await Running(bus, shelf, actor, tasks).inbox("clerk", bursts * size)
                turns = {one.turn_id: str(one.messages[0].content) for one in found}
                assert sorted(map(int, turns.values())) == list(range(bursts * size))
        # Some were in the hands of those that were killed, and none started two turns.
        assert again > bursts * size
        assert (await streams.state(AGENTS.name)).last == bursts * size


@pytest.mark.requirement("trigger-once")
async def test_a_bus_that_is_killed_costs_no_event_and_doubles_none(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "nats") as server, connect(server.url) as bus:
        shelf = await open_shelf(bus)
        await add_agents(bus, "clerk")
        streams = bus.storage.streams
        async with anyio.create_task_group() as tasks:
            running = Running(bus, shelf, TriggersActor(shelf), tasks)
            await running.worker()
            await running.api.create(request("orders", template="$n"))
            for number in range(40):
                await running.publish(ORDERS, b'{"n": %d}' % number, f"{number}")
            await running.inbox("clerk", 10)
            async with killed_and_started(tmp_path / "nats", server):
                for number in range(40, 60):
                    again = partial(running.publish, ORDERS, b'{"n": %d}' % number, f"{number}")
                    await persistently(again)
                told = await running.inbox("clerk", 60)
                with anyio.fail_after(30):
                    await answered(bus, (await shelf.record("orders")).consumer)
                assert {str(one.messages[0].content) for one in told} == {*map(str, range(60))}
                assert (await streams.state(AGENTS.name)).last == 60
            tasks.cancel_scope.cancel()


async def answered(bus: Bus, consumer: str) -> int:
    """Wait until all events of a trigger are answered, and return how many were delivered, those of several times too."""
    streams = bus.storage.streams
    assert isinstance(streams, JetStreamStreams)
    while True:
        info = await streams._api.js.consumer_info(EVENTS.name, consumer)
        if info.num_ack_pending == 0 and info.num_pending == 0:
            assert info.delivered is not None
            return int(info.delivered.consumer_seq)
        await anyio.sleep(0.05)


@both
@pytest.mark.requirement("trigger-budget", "trigger-chain")
async def test_the_end_of_a_turn_hands_on_what_is_left(kind: str, tmp_path: Path) -> None:
    async with triggers(kind, tmp_path) as running:
        await running.create("after", subject="turn.writer.completed", limits=Limits(tokens=50))
        for number, left in enumerate([Limits(tokens=80, steps=2), Limits(steps=0)]):
            event = TurnEnded(
                "writer", f"{number}", TurnStatus.completed, datetime.now(UTC), "hi", left=left
            )
            subject = event_subject("turn", "writer", "completed")
            await publish_event(running.bus, subject, event, f"{number}")
        [told] = await running.inbox("clerk", 1)
        assert told.limits == Limits(tokens=50, steps=2)
        await running.counted("after", fired=1, refused=1)
        assert "budget: steps" in (await running.api.get("after")).last_error
