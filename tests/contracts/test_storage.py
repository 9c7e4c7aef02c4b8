"""One contract for all storages: the one in memory, and JetStream on a real nats-server."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ayllu.bus.durable import Appended, Delivery, Entry, NewEntry, Storage, StreamSpec, WorkQueue
from ayllu.bus.local import LocalTransport
from ayllu.bus.memory import MemoryStorage
from ayllu.bus.nats import connect_nats
from ayllu.bus.transport import Message
from ayllu.schemas import BusError, Conflict, InvalidRequest, NotFound, Overloaded, Unsupported

pytestmark = pytest.mark.asyncio

_names = itertools.count()


class Running:
    """Opens a storage of one kind, with names that are this test's own."""

    def __init__(self, kind: str, request: pytest.FixtureRequest) -> None:
        self.kind = kind
        self.url = request.getfixturevalue("nats_url") if kind == "jetstream" else ""
        number = f"{os.getpid()}_{next(_names)}"
        self.name = f"T{number}"
        self.root = f"test.{number}"

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Storage]:
        if self.kind == "memory":
            yield MemoryStorage()
        else:
            async with connect_nats(self.url, name="contract") as transport:
                yield transport.storage

    def spec(
        self,
        *,
        work_queue: bool = False,
        max_bytes: int = 1 << 20,
        max_age: float = 0.0,
        max_per_subject: int = 0,
        discard: str = "old",
        atomic: bool = False,
        expiring: bool = False,
    ) -> StreamSpec:
        return StreamSpec(
            name=self.name,
            subjects=(f"{self.root}.>",),
            storage="memory",
            work_queue=work_queue,
            max_bytes=max_bytes,
            max_age=max_age,
            max_per_subject=max_per_subject,
            discard="new" if discard == "new" else "old",
            atomic=atomic,
            expiring=expiring,
        )


@pytest.fixture(params=["memory", "jetstream"])
def running(request: pytest.FixtureRequest) -> Running:
    return Running(request.param, request)


async def replayed(
    storage: Storage, stream: str, subject: str = ">", after: int = 0
) -> list[Entry]:
    with anyio.fail_after(10):
        async with storage.streams.replay(stream, subject, after=after) as entries:
            return [entry async for entry in entries]


async def first(entries: AsyncIterator[Entry], count: int) -> list[Entry]:
    with anyio.fail_after(10):
        return [await anext(entries) for _ in range(count)]


async def filled(running: Running, storage: Storage, count: int) -> None:
    await storage.streams.ensure(running.spec())
    for number in range(count):
        await storage.streams.append(
            f"{running.root}.{number % 2}", b"%d" % number, msg_id=f"id {number}"
        )


@pytest.mark.requirement("streams-append")
async def test_what_is_appended_is_kept_in_order(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(running.spec())
        stored = await storage.streams.append(f"{running.root}.a", b"1", msg_id="ä/ü 1 %")
        assert stored == Appended(1)
        assert await storage.streams.append(f"{running.root}.b", b"", msg_id="2") == Appended(2)
        assert await replayed(storage, running.name) == [
            Entry(f"{running.root}.a", 1, b"1", "ä/ü 1 %"),
            Entry(f"{running.root}.b", 2, b"", "2"),
        ]
        state = await storage.streams.state(running.name)
        assert (state.first, state.last, state.count) == (1, 2, 2)
        assert state.bytes > 0


@pytest.mark.requirement("streams-same-id-once", "nats-03")
async def test_the_same_id_is_stored_once(running: Running) -> None:
    async with running() as storage:
        await filled(running, storage, 2)
        again = await storage.streams.append(f"{running.root}.0", b"other", msg_id="id 0")
        assert again == Appended(1, duplicate=True)
        assert len(await replayed(storage, running.name)) == 2


@pytest.mark.requirement("streams-fence", "nats-04")
async def test_the_fence_keeps_a_stale_writer_out(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(running.spec())
        subject, other = f"{running.root}.a", f"{running.root}.b"
        one = await storage.streams.append(subject, b"1", msg_id="1", expected_last=0)
        await storage.streams.append(other, b"x", msg_id="x", expected_last=0)
        two = await storage.streams.append(subject, b"2", msg_id="2", expected_last=one.sequence)
        for stale in (0, one.sequence, two.sequence + 7):
            with pytest.raises(Conflict):
                await storage.streams.append(subject, b"3", msg_id="3", expected_last=stale)
        assert [entry.payload for entry in await replayed(storage, running.name, subject)] == [
            b"1",
            b"2",
        ]


@pytest.mark.requirement("streams-fence-retry", "nats-08b")
async def test_the_retry_of_a_fenced_append_that_landed_is_no_conflict(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(running.spec())
        subject = f"{running.root}.a"
        await storage.streams.append(subject, b"1", msg_id="a", expected_last=0)
        again = await storage.streams.append(subject, b"1", msg_id="a", expected_last=0)
        assert again == Appended(1, duplicate=True)
        await storage.streams.append(subject, b"2", msg_id="b", expected_last=1)
        with pytest.raises(Conflict):
            await storage.streams.append(subject, b"1", msg_id="a", expected_last=0)


@pytest.mark.requirement("streams-expiry")
async def test_an_entry_expires_for_its_readers(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(running.spec())
        subject = f"{running.root}.a"
        await storage.streams.append(subject, b"", msg_id="1", expires=60)
        await storage.streams.append(subject, b"", msg_id="2", expires=0.0)
        assert [entry.expired for entry in await replayed(storage, running.name)] == [False, True]
        last = await storage.streams.last(running.name, subject)
        assert last is not None
        assert last.expired


@pytest.mark.requirement("streams-append")
async def test_what_does_not_exist(running: Running) -> None:
    async with running() as storage:
        with pytest.raises(NotFound):
            await storage.streams.append(f"{running.root}.a", b"", msg_id="1")
        with pytest.raises(NotFound):
            await storage.streams.state(running.name)
        with pytest.raises(NotFound):
            await storage.streams.last(running.name, "a")
        with pytest.raises(NotFound):
            async with storage.streams.read(running.name):
                pass
        with pytest.raises(NotFound):
            await storage.streams.work(running.name, "w")
        await storage.streams.ensure(running.spec())
        assert await storage.streams.last(running.name, f"{running.root}.a") is None
        assert await replayed(storage, running.name) == []


@pytest.mark.requirement("streams-ensure", "nats-08b")
async def test_ensure_updates_and_refuses_overlaps(running: Running) -> None:
    async with running() as storage:
        await filled(running, storage, 4)
        await storage.streams.ensure(running.spec())
        await storage.streams.ensure(running.spec(max_bytes=1 << 19))
        assert len(await replayed(storage, running.name)) == 4
        overlap = StreamSpec(f"{running.name}X", (f"{running.root}.a.*",), storage="memory")
        with pytest.raises(Conflict):
            await storage.streams.ensure(overlap)
        with pytest.raises(Conflict):
            await storage.streams.ensure(StreamSpec(running.name, (f"{running.root}.>",)))


@pytest.mark.requirement("streams-last")
async def test_last_of_a_subject_and_of_a_pattern(running: Running) -> None:
    async with running() as storage:
        await filled(running, storage, 4)
        for subject, payload in (("0", b"2"), ("1", b"3"), ("*", b"3"), (">", b"3")):
            last = await storage.streams.last(running.name, f"{running.root}.{subject}")
            assert last is not None
            assert (last.payload, last.msg_id) == (payload, f"id {payload.decode()}")


@pytest.mark.requirement("streams-read")
async def test_reading_goes_from_the_past_into_the_live_tail(running: Running) -> None:
    async with running() as storage:
        await filled(running, storage, 600)
        async with storage.streams.read(running.name, f"{running.root}.1", after=4) as entries:
            found = await first(entries, 298)
            for number in range(600, 604):
                await storage.streams.append(
                    f"{running.root}.{number % 2}", b"%d" % number, msg_id=f"id {number}"
                )
            found += await first(entries, 2)
        assert [int(entry.payload) for entry in found] == list(range(5, 604, 2))


@pytest.mark.requirement("streams-read")
async def test_a_live_entry_comes_at_once(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(running.spec())
        async with storage.streams.read(running.name) as entries:
            for number in range(20):
                await storage.streams.append(f"{running.root}.a", b"", msg_id=f"{number}")
                with anyio.fail_after(0.5):
                    assert (await anext(entries)).sequence == number + 1


@pytest.mark.requirement("streams-read")
async def test_a_reader_that_waits_can_be_cancelled(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(running.spec())
        async with storage.streams.read(running.name) as entries:
            with anyio.move_on_after(0.05) as scope:
                await anext(entries)
        assert scope.cancelled_caught


@pytest.mark.requirement("streams-replay")
async def test_a_replay_ends(running: Running) -> None:
    async with running() as storage:
        await filled(running, storage, 700)
        async with storage.streams.replay(running.name, after=100) as entries:
            one = await anext(entries)
            await storage.streams.append(f"{running.root}.0", b"new", msg_id="new")
            found = [one] + [entry async for entry in entries]
        assert [entry.sequence for entry in found] == list(range(101, 701))
        assert await replayed(storage, running.name, after=701) == []
        assert await replayed(storage, running.name, f"{running.root}.none") == []


@pytest.mark.requirement("streams-limits")
async def test_an_event_stream_drops_the_old_at_its_limit(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(running.spec(max_bytes=10_000))
        for number in range(40):
            await storage.streams.append(f"{running.root}.a", bytes(1000), msg_id=f"{number}")
        state = await storage.streams.state(running.name)
        assert state.last == 40
        assert state.first > 20
        found = await replayed(storage, running.name, after=3)
        assert [entry.sequence for entry in found] == list(range(state.first, 41))


@pytest.mark.requirement("streams-limits", "nats-10")
async def test_a_full_stream_refuses_the_new(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(running.spec(max_bytes=10_000, discard="new"))
        with pytest.raises(Overloaded):
            for number in range(40):
                await storage.streams.append(f"{running.root}.a", bytes(1000), msg_id=f"{number}")
        state = await storage.streams.state(running.name)
        assert state.first == 1
        assert 5 <= state.count <= 10


@pytest.mark.requirement("streams-limits")
async def test_compaction_keeps_the_last_of_each_subject(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(running.spec(max_per_subject=1))
        for number in range(6):
            await storage.streams.append(
                f"{running.root}.{number % 2}", b"%d" % number, msg_id=f"{number}"
            )
        assert [entry.payload for entry in await replayed(storage, running.name)] == [b"4", b"5"]


@pytest.mark.requirement("streams-limits")
async def test_old_entries_go(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(running.spec(max_age=0.5))
        await storage.streams.append(f"{running.root}.a", b"", msg_id="1")
        with anyio.fail_after(5):
            while (await storage.streams.state(running.name)).count:
                await anyio.sleep(0.05)  # time itself is what is waited for
        assert (await storage.streams.state(running.name)).last == 1


@pytest.mark.requirement("streams-purge-before")
async def test_purge_spares_what_came_later(running: Running) -> None:
    async with running() as storage:
        await filled(running, storage, 6)
        await storage.streams.purge(running.name, f"{running.root}.0", before=0)
        assert len(await replayed(storage, running.name)) == 6
        await storage.streams.purge(running.name, f"{running.root}.0", before=5)
        assert [entry.sequence for entry in await replayed(storage, running.name)] == [2, 4, 5, 6]


@pytest.mark.requirement("streams-ttl")
async def test_an_entry_of_a_batch_goes_after_its_time(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(
            running.spec(atomic=True, expiring=True, max_per_subject=1, discard="new")
        )
        one, other = f"{running.root}.a", f"{running.root}.b"
        await storage.streams.append_batch([NewEntry(one, b"1", "1"), NewEntry(other, b"2", "2")])
        assert (
            await storage.streams.append_batch(
                [NewEntry(one, b"", "3", ttl=1), NewEntry(other, b"", "4", ttl=1)], expected_last=2
            )
            == 4
        )
        await storage.streams.append_batch([NewEntry(other, b"5", "5")])
        with anyio.fail_after(10):
            while len(left := await replayed(storage, running.name)) == 2:
                await anyio.sleep(0.05)
        assert [entry.payload for entry in left] == [b"5"]
        assert (await storage.streams.state(running.name)).last == 5


@pytest.mark.requirement("streams-purge")
async def test_purge_removes_a_subject(running: Running) -> None:
    async with running() as storage:
        await filled(running, storage, 4)
        await storage.streams.purge(running.name, f"{running.root}.0")
        assert [entry.payload for entry in await replayed(storage, running.name)] == [b"1", b"3"]
        await storage.streams.purge(running.name, f"{running.root}.>")
        state = await storage.streams.state(running.name)
        assert (state.count, state.last, state.first) == (0, 4, 5)


@pytest.mark.requirement("streams-batch", "nats-08c")
async def test_a_batch_is_stored_whole_or_not_at_all(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(running.spec(atomic=True))

        def batch(*ids: str) -> list[NewEntry]:
            return [NewEntry(f"{running.root}.{id_}", id_.encode(), id_) for id_ in ids]

        assert await storage.streams.append_batch(batch("a"), expected_last=0) == 1
        assert await storage.streams.append_batch(batch("b", "c", "d"), expected_last=1) == 4
        with pytest.raises(Conflict):
            await storage.streams.append_batch(batch("e", "f"), expected_last=1)
        assert await storage.streams.append_batch(batch("g", "h")) == 6
        found = await replayed(storage, running.name)
        assert b"".join(entry.payload for entry in found) == b"abcdgh"
        assert [entry.msg_id for entry in found] == list("abcdgh")
        with pytest.raises(InvalidRequest):
            await storage.streams.append_batch([])


@pytest.mark.requirement("streams-batch", "nats-08b")
async def test_the_retry_of_a_batch_that_landed_is_no_conflict(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(running.spec(atomic=True))
        batch = [NewEntry(f"{running.root}.{id_}", b"", id_) for id_ in "abc"]
        for fence in (0, 0, None):
            assert await storage.streams.append_batch(batch, expected_last=fence) == 3
        assert len(await replayed(storage, running.name)) == 3


@pytest.mark.requirement("streams-batch")
async def test_a_batch_of_a_thousand(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(running.spec(atomic=True))
        batch = [NewEntry(f"{running.root}.{n}", b"", f"{n}") for n in range(1000)]
        assert await storage.streams.append_batch(batch) == 1000


STEPS = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from("123"), st.none() | st.integers(0, 4)),
    max_size=8,
)


@pytest.mark.requirement("streams-fence", "streams-fence-retry", "streams-same-id-once")
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS)
async def test_both_storages_answer_any_appends_alike(
    nats_url: str, steps: list[tuple[str, str, int | None]]
) -> None:
    name = f"P{os.getpid()}_{next(_names)}"
    spec = StreamSpec(name, (f"{name}.>",), "memory", max_bytes=1 << 16)

    async def outcomes(storage: Storage) -> list[object]:
        await storage.streams.ensure(spec)
        told: list[object] = []
        for subject, msg_id, fence in steps:
            try:
                told.append(
                    await storage.streams.append(
                        f"{name}.{subject}", b"x", msg_id=msg_id, expected_last=fence
                    )
                )
            except Conflict:
                told.append("conflict")
        return told + await replayed(storage, name)

    async with connect_nats(nats_url) as transport:
        assert await outcomes(transport.storage) == await outcomes(MemoryStorage())
        await transport.storage._api.js.delete_stream(name)


async def queue_of(running: Running, storage: Storage, ack_wait: float = 30.0) -> WorkQueue:
    await storage.streams.ensure(running.spec(work_queue=True))
    return await storage.streams.work(running.name, "workers", ack_wait=ack_wait)


async def count(storage: Storage, running: Running, wanted: int) -> None:
    with anyio.fail_after(5):
        while (await storage.streams.state(running.name)).count != wanted:
            await anyio.sleep(0.01)  # only `ack` is confirmed


@pytest.mark.requirement("work-queue")
async def test_work_is_fetched_acknowledged_and_gone(running: Running) -> None:
    async with running() as storage:
        queue = await queue_of(running, storage)
        assert await queue.fetch(5, wait=0.05) == []
        for number in range(3):
            await storage.streams.append(f"{running.root}.a", b"%d" % number, msg_id=f"{number}")
        found = await queue.fetch(2)
        found += await queue.fetch(2)
        assert [(one.entry.payload, one.attempt) for one in found] == [
            (b"0", 1),
            (b"1", 1),
            (b"2", 1),
        ]
        assert await queue.fetch(1, wait=0.05) == []
        await found[0].ack()
        assert (await storage.streams.state(running.name)).count == 2
        await found[1].term()
        await found[2].ack()
        await count(storage, running, 0)


@pytest.mark.requirement("work-queue")
async def test_who_waits_for_work_gets_it_at_once(running: Running) -> None:
    async with running() as storage:
        queue = await queue_of(running, storage)
        found: list[Delivery] = []

        async def work() -> None:
            found.extend(await queue.fetch(10, wait=5))

        # At whatever moment it comes: before the fetch begins, while it begins to wait, later.
        with anyio.fail_after(4):
            for moment in range(6):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(work)
                    for _ in range(moment):
                        await anyio.lowlevel.checkpoint()
                    await storage.streams.append(f"{running.root}.a", b"", msg_id=f"{moment}")
        assert [one.entry.sequence for one in found] == [1, 2, 3, 4, 5, 6]


@pytest.mark.requirement("work-queue")
async def test_what_is_handed_back_comes_again(running: Running) -> None:
    async with running() as storage:
        queue = await queue_of(running, storage)
        await storage.streams.append(f"{running.root}.a", b"", msg_id="1")
        [one] = await queue.fetch(1)
        await one.nak()
        [two] = await queue.fetch(1)
        assert two.attempt == 2
        started = time.monotonic()
        await two.nak(0.3)
        [three] = await queue.fetch(1, wait=5)
        assert time.monotonic() - started >= 0.25
        assert three.attempt == 3
        await three.ack()


@pytest.mark.requirement("work-queue", "nats-08")
async def test_deliveries_are_unlimited_and_counted(running: Running) -> None:
    async with running() as storage:
        queue = await queue_of(running, storage)
        await storage.streams.append(f"{running.root}.a", b"", msg_id="1")
        for attempt in range(1, 30):
            [one] = await queue.fetch(1)
            assert one.attempt == attempt
            await one.nak()


@pytest.mark.requirement("work-queue")
async def test_a_silent_worker_loses_its_work_and_a_diligent_one_keeps_it(running: Running) -> None:
    async with running() as storage:
        queue = await queue_of(running, storage, ack_wait=0.5)
        await storage.streams.append(f"{running.root}.a", b"silent", msg_id="1")
        await storage.streams.append(f"{running.root}.a", b"diligent", msg_id="2")
        [silent, diligent] = await queue.fetch(2)
        again: list[Delivery] = []
        started = time.monotonic()
        while time.monotonic() - started < 1.2:
            await diligent.in_progress()
            again += await queue.fetch(2, wait=0.1)
        assert {one.entry.payload for one in again} == {b"silent"}
        assert silent.attempt == 1
        assert again[0].attempt == 2


@pytest.mark.requirement("work-queue")
async def test_workers_share_one_consumer(running: Running) -> None:
    async with running() as storage:
        queue = await queue_of(running, storage)
        other = await storage.streams.work(running.name, "workers")
        for number in range(10):
            await storage.streams.append(f"{running.root}.a", b"", msg_id=f"{number}")
        found = await queue.fetch(5) + await other.fetch(5)
        assert sorted(one.entry.sequence for one in found) == list(range(1, 11))


@pytest.mark.requirement("work-queue", "nats-07")
async def test_a_fetch_that_is_cancelled_strands_nothing(running: Running) -> None:
    async with running() as storage:
        queue = await queue_of(running, storage)
        for _ in range(5):
            with anyio.move_on_after(0.05) as scope:
                await queue.fetch(1, wait=5)
            assert scope.cancelled_caught
        await storage.streams.append(f"{running.root}.a", b"", msg_id="1")
        with anyio.fail_after(4):
            assert [one.entry.sequence for one in await queue.fetch(1, wait=4)] == [1]


@pytest.mark.requirement("work-queue-after")
async def test_work_may_begin_after_an_entry(running: Running) -> None:
    async with running() as storage:
        await filled(running, storage, 4)
        streams = storage.streams
        late = await streams.work(running.name, "late", subject=f"{running.root}.1", after=2)
        await streams.append(f"{running.root}.0", b"4", msg_id="4")
        await streams.append(f"{running.root}.1", b"5", msg_id="5")
        [found] = await late.fetch(1)
        await found.ack()
        # Whoever comes later goes on where it stands, also from another sequence.
        late = await streams.work(running.name, "late", subject=f"{running.root}.1", after=2)
        assert [found.entry.payload, *[one.entry.payload for one in await late.fetch(5)]] == [
            b"3",
            b"5",
        ]
        assert (await streams.state(running.name)).count == 6


@pytest.mark.requirement("work-queue-after")
async def test_work_that_has_not_begun_yet_waits_for_what_comes_after(running: Running) -> None:
    async with running() as storage:
        await filled(running, storage, 2)
        queue = await storage.streams.work(running.name, "w", after=2)
        assert await queue.fetch(1, wait=0.05) == []
        await storage.streams.append(f"{running.root}.a", b"new", msg_id="new")
        assert [one.entry.payload for one in await queue.fetch(2)] == [b"new"]


@pytest.mark.requirement("work-queue-end")
async def test_work_that_is_ended_is_told_to_those_who_wait(running: Running) -> None:
    async with running() as storage:
        await filled(running, storage, 2)
        queue = await storage.streams.work(running.name, "w", after=2)

        async def wait() -> None:
            with pytest.raises(BusError):
                while True:
                    await queue.fetch(1, wait=5)

        with anyio.fail_after(4):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.sleep(0.05)  # it may wait by then; both ways it is told
                await storage.streams.end_work(running.name, "w")
        await storage.streams.end_work(running.name, "w")
        again = await storage.streams.work(running.name, "w")
        assert len(await again.fetch(5)) == 2


@pytest.mark.requirement("work-queue")
async def test_a_work_queue_is_not_read(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(running.spec(work_queue=True))
        with pytest.raises(Unsupported):
            async with storage.streams.read(running.name):
                pass


KEYS = ["a", "", "a.b", "*", ">", "ä ö", "a/b\n", "=20", " "]


@pytest.mark.requirement("key-value")
async def test_keys_are_any_text(running: Running) -> None:
    async with running() as storage:
        bucket = await storage.key_value(running.name)
        assert await bucket.keys() == []
        for number, key in enumerate(KEYS, 1):
            assert await bucket.get(key) is None
            assert await bucket.put(key, key.encode()) == number
        assert await bucket.keys() == sorted(KEYS)
        for number, key in enumerate(KEYS, 1):
            entry = await bucket.get(key)
            assert entry is not None
            assert (entry.key, entry.value, entry.revision) == (key, key.encode(), number)
        with pytest.raises(InvalidRequest):
            await bucket.put("\ud800", b"")


@pytest.mark.requirement("key-value")
async def test_compare_and_set(running: Running) -> None:
    async with running() as storage:
        bucket = await storage.key_value(running.name)
        one = await bucket.create("k", b"1")
        with pytest.raises(Conflict):
            await bucket.create("k", b"2")
        two = await bucket.update("k", b"2", revision=one)
        for stale in (one, 0, two + 1):
            with pytest.raises(Conflict):
                await bucket.update("k", b"3", revision=stale)
        with pytest.raises(Conflict):
            await bucket.delete("k", revision=one)
        entry = await bucket.get("k")
        assert entry is not None
        assert (entry.value, entry.revision) == (b"2", two)
        await bucket.delete("k", revision=two)
        assert await bucket.get("k") is None
        assert await bucket.keys() == []
        await bucket.delete("k")
        three = await bucket.create("k", b"")
        assert three > two
        entry = await bucket.get("k")
        assert entry is not None
        assert entry.value == b""


@pytest.mark.requirement("key-value")
async def test_one_of_many_creators_wins(running: Running) -> None:
    async with running() as storage:
        bucket = await storage.key_value(running.name)
        winners: list[int] = []

        async def create(number: int) -> None:
            try:
                await bucket.create("lease", b"%d" % number)
            except Conflict:
                return
            winners.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(create, number)
        assert len(winners) == 1


@pytest.mark.requirement("key-value-expiry", "nats-10")
async def test_a_lease_expires_and_can_be_taken_again(running: Running) -> None:
    async with running() as storage:
        bucket = await storage.key_value(running.name, ttl=1.0)
        held = await bucket.create("lease", b"one")
        with pytest.raises(Conflict):
            await bucket.create("lease", b"two")
        with anyio.fail_after(5):
            while await bucket.get("lease") is not None:
                await anyio.sleep(0.05)  # time itself is what is waited for
        assert await bucket.keys() == []
        with pytest.raises(Conflict):
            await bucket.update("lease", b"late", revision=held)
        await bucket.create("lease", b"two")
        with pytest.raises(Conflict):
            await bucket.create("lease", b"three")
        again = await storage.key_value(running.name, ttl=2.0)
        entry = await again.get("lease")
        assert entry is not None
        assert entry.value == b"two"


@pytest.mark.requirement("objects")
async def test_objects_of_any_name_and_size(running: Running) -> None:
    async with running() as storage:
        store = await storage.objects(running.name, max_bytes=1 << 25)
        large = os.urandom(3_000_000)
        for name, data in (("a/b ä.bin", large), ("", b"x"), ("empty", b"")):
            with pytest.raises(NotFound):
                await store.get(name)
            await store.put(name, data)
            assert await store.get(name) == data
        await store.put("a/b ä.bin", b"small")
        assert await store.get("a/b ä.bin") == b"small"
        await store.delete("a/b ä.bin")
        await store.delete("a/b ä.bin")
        with pytest.raises(NotFound):
            await store.get("a/b ä.bin")


@pytest.mark.requirement("objects")
async def test_a_full_object_store_refuses(running: Running) -> None:
    async with running() as storage:
        store = await storage.objects(running.name, max_bytes=1 << 20)
        await store.put("a", bytes(500_000))
        with pytest.raises(Overloaded):
            await store.put("b", bytes(1_000_000))
        with pytest.raises(NotFound):
            await store.get("b")
        assert await store.get("a") == bytes(500_000)


@pytest.mark.requirement("objects-names")
async def test_what_objects_there_are_is_told_and_nothing_is_left_of_a_removed_one(
    running: Running,
) -> None:
    async with running() as storage:
        store = await storage.objects(running.name, max_bytes=1 << 20)
        assert await store.names() == []
        for name in ("b", "ä/. *>", "a"):
            await store.put(name, b"data of " + name.encode())
        await store.put("a", b"again")
        assert await store.names() == ["a", "b", "ä/. *>"]
        for name in ("a", "ä/. *>", "unknown"):
            await store.delete(name)
        assert await store.names() == ["b"]
        assert await store.get("b") == b"data of b"
        if running.kind == "jetstream":
            assert (await storage.streams.state(f"OBJ_{running.name}")).count == 2


@pytest.mark.requirement("objects")
async def test_objects_expire(running: Running) -> None:
    async with running() as storage:
        store = await storage.objects(running.name, ttl=1.0, max_bytes=1 << 20)
        await store.put("a", b"x")
        with anyio.fail_after(5), pytest.raises(NotFound):
            while await store.get("a") == b"x":
                await anyio.sleep(0.05)  # time itself is what is waited for


@pytest.mark.requirement("streams-republish")
async def test_what_was_stored_is_published_again(nats_url: str) -> None:
    spec = StreamSpec(
        "REP", ("rep.in.>",), "memory", max_bytes=1 << 20, republish=("rep.in.>", "rep.out.>")
    )
    local = LocalTransport()
    async with connect_nats(nats_url) as transport:
        for bus, storage in ((local, MemoryStorage(local)), (transport, transport.storage)):
            await storage.streams.ensure(spec)
            got: list[Message] = []
            full = anyio.Event()

            def note(message: Message, got: list[Message] = got, full: anyio.Event = full) -> None:
                got.append(message)
                if message.subject == "rep.out.end":
                    full.set()

            async with bus.subscribe("rep.out.>", note):
                await storage.streams.append("rep.in.a.b", b"1", msg_id="1")
                await storage.streams.append("rep.in.a.b", b"1", msg_id="1")
                await storage.streams.append("rep.in.end", b"2", msg_id="2")
                with anyio.fail_after(5):
                    await full.wait()
            assert [(one.subject, one.payload) for one in got] == [
                ("rep.out.a.b", b"1"),
                ("rep.out.end", b"2"),
            ]


@pytest.mark.requirement("stream-first")
async def test_the_first_entry_after_a_sequence(running: Running) -> None:
    async with running() as storage:
        streams = storage.streams
        await streams.ensure(running.spec())
        subjects = [f"{running.root}.{name}" for name in "abab"]
        for number, subject in enumerate(subjects):
            await streams.append(subject, b"%d" % number, msg_id=str(number))
        one = await streams.first(running.name, subjects[1])
        assert one is not None
        assert (one.sequence, one.payload, one.msg_id) == (2, b"1", "1")
        other = await streams.first(running.name, subjects[1], after=2)
        assert other is not None
        assert other.payload == b"3"
        assert await streams.first(running.name, subjects[1], after=4) is None
        assert await streams.first(running.name, f"{running.root}.c") is None
        await streams.purge(running.name, subjects[1], before=3)
        found = await streams.first(running.name, f"{running.root}.*", after=1)
        assert found is not None
        assert found.sequence == 3


@pytest.mark.requirement("stream-post")
async def test_what_is_posted_is_stored_in_order(running: Running) -> None:
    async with running() as storage:
        streams = storage.streams
        await streams.ensure(running.spec())
        for number in range(100):
            await streams.post(f"{running.root}.x", b"%d" % number)
        await streams.append(f"{running.root}.x", b"end", msg_id="end")
        payloads = [entry.payload for entry in await replayed(storage, running.name)]
        assert payloads == [*(b"%d" % number for number in range(100)), b"end"]
        await streams.post(f"nobody.{running.root}", b"lost")


@pytest.mark.requirement("stream-made")
async def test_a_stream_tells_when_it_was_made(running: Running) -> None:
    async with running() as storage:
        await storage.streams.ensure(running.spec())
        made = (await storage.streams.state(running.name)).made
        await storage.streams.ensure(running.spec())
        await storage.streams.append(f"{running.root}.x", b"", msg_id="1")
        assert (await storage.streams.state(running.name)).made == made != ""
