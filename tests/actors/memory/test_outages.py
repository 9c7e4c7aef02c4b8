"""What a bus that does not answer, a caller that leaves and a disk that takes nothing do to memory banks: no harm."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from support.memory import Memory, document, documents, running_memory

from ayllu.actors.memory import replica as replica_module
from ayllu.bus.bus import Bus, local_bus
from ayllu.bus.durable import NewEntry, Objects, Storage, Streams
from ayllu.schemas import BusError, Conflict

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("memory-outages")]

LARGE = f"<p>large</p><style>{'x' * 600_000}</style>"
"""More than a message of the bus takes, so that it goes to the object store; its text is short."""


async def nothing() -> None:
    """Happens where nothing is to happen."""


async def no_answer() -> None:
    raise BusError("no answer")


@dataclass
class Faults:
    """What happens at some places: before a large document is stored or read, and after a batch was."""

    before_put: Callable[[], Awaitable[None]] = nothing
    before_get: Callable[[], Awaitable[None]] = nothing
    after_batch: Callable[[], Awaitable[None]] = nothing
    before_delete: Callable[[], Awaitable[None]] = nothing
    reached: anyio.Event = field(default_factory=anyio.Event)

    async def hang(self) -> None:
        self.reached.set()
        await anyio.sleep_forever()

    def once(self, what: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Return what lets something happen the first time only."""
        left = [what]

        async def happen() -> None:
            if left:
                await left.pop()()

        return happen


class FaultyStreams:
    def __init__(self, streams: Streams, faults: Faults) -> None:
        self._streams = streams
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._streams, name)

    async def append_batch(self, entries: Sequence[NewEntry], *, expected_last: int | None) -> int:
        last = await self._streams.append_batch(entries, expected_last=expected_last)
        await self._faults.after_batch()
        return last


class FaultyObjects:
    def __init__(self, objects: Objects, faults: Faults) -> None:
        self._objects = objects
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objects, name)

    async def put(self, name: str, data: bytes) -> None:
        await self._faults.before_put()
        await self._objects.put(name, data)

    async def get(self, name: str) -> bytes:
        await self._faults.before_get()
        return await self._objects.get(name)

    async def delete(self, name: str) -> None:
        await self._faults.before_delete()
        await self._objects.delete(name)


class FaultyStorage:
    def __init__(self, storage: Storage, faults: Faults) -> None:
        self._storage = storage
        self._faults = faults
        self.streams = FaultyStreams(storage.streams, faults)

    async def objects(self, bucket: str, *, ttl: float = 0.0, max_bytes: int = 1 << 30) -> Objects:
        found = await self._storage.objects(bucket, ttl=ttl, max_bytes=max_bytes)
        return cast(Objects, FaultyObjects(found, self._faults))


@dataclass
class Pair:
    """Two replicas; only one has to do with faults."""

    faulty: Memory
    other: Memory
    faults: Faults
    bus: Bus

    async def contents(self) -> dict[str, bytes]:
        """Return the documents of the bank, of which both replicas know the same."""
        found = await self.other.uuids("x")
        assert await self.faulty.uuids("x") == found
        return found

    async def objects_left(self) -> int:
        objects = await self.bus.storage.objects("banks", max_bytes=8 << 30)
        return len(await objects.names())


@asynccontextmanager
async def running_pair(folder: Path) -> AsyncIterator[Pair]:
    faults = Faults()
    with anyio.fail_after(30):
        async with local_bus() as bus:
            faulty_bus = replace(bus, storage=cast(Storage, FaultyStorage(bus.storage, faults)))
            async with (
                running_memory(faulty_bus, folder / "faulty") as faulty,
                running_memory(bus, folder / "other") as other,
            ):
                await other.banks.create("x", "x", documents(["old"]))
                yield Pair(faulty, other, faults, bus)


async def leave_when_reached(pair: Pair) -> None:
    """Begin to insert two documents, and leave at the fault."""
    async with anyio.create_task_group() as tasks:
        both = [document("large", LARGE, "text/html"), document("small")]
        tasks.start_soon(pair.faulty.documents.insert, "x", both)
        await pair.faults.reached.wait()
        tasks.cancel_scope.cancel()


async def test_a_change_that_was_sent_is_whole_although_its_caller_left(tmp_path: Path) -> None:
    async with running_pair(tmp_path) as pair:
        pair.faults.after_batch = pair.faults.hang
        await leave_when_reached(pair)
        found = await pair.contents()
        assert found.keys() == {"old", "large", "small"}
        assert found["large"] == LARGE.encode()


async def test_nothing_is_left_of_a_change_that_was_not_sent(tmp_path: Path) -> None:
    async with running_pair(tmp_path) as pair:
        pair.faults.before_put = pair.faults.hang
        await leave_when_reached(pair)
        assert (await pair.contents()).keys() == {"old"}
        assert await pair.objects_left() == 0


async def test_a_change_whose_answer_is_lost_is_made_once(tmp_path: Path) -> None:
    async with running_pair(tmp_path) as pair:
        pair.faults.after_batch = pair.faults.once(no_answer)
        await pair.faulty.documents.insert(
            "x", [document("large", LARGE, "text/html"), document("small")]
        )
        assert (await pair.contents()).keys() == {"old", "large", "small"}


async def test_a_change_that_is_never_answered_ends_in_an_error_that_says_so(
    tmp_path: Path,
) -> None:
    async with running_pair(tmp_path) as pair:

        async def overtaken() -> None:
            await pair.other.documents.update("x", [document("small", "newer")])
            await no_answer()

        # Its last document has changed when it looks whether it had landed.
        pair.faults.after_batch = pair.faults.once(overtaken)
        with pytest.raises(BusError) as unknown:
            await pair.faulty.documents.insert(
                "x", [document("large", LARGE, "text/html"), document("small")]
            )
        assert unknown.value.retryable
        found = await pair.contents()
        assert found == {"old": b"text of old", "large": LARGE.encode(), "small": b"newer"}


async def test_nothing_is_left_of_a_change_that_is_refused_at_last(tmp_path: Path) -> None:
    async with running_pair(tmp_path) as pair:

        async def overtaken() -> None:
            await pair.other.documents.insert("x", [document("small")])

        pair.faults.before_put = overtaken
        with pytest.raises(Conflict) as refused:
            await pair.faulty.documents.insert(
                "x", [document("large", LARGE, "text/html"), document("small")]
            )
        assert refused.value.details == {"documents": ["small"]}
        assert (await pair.contents()).keys() == {"old", "small"}
        assert await pair.objects_left() == 0


async def test_a_replica_waits_for_a_bus_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "RETRY_SECONDS", 0.0)
    async with running_pair(tmp_path) as pair:
        pair.faults.before_get = pair.faults.once(no_answer)
        pair.faults.before_delete = pair.faults.once(no_answer)
        await pair.other.documents.insert("x", [document("large", LARGE, "text/html")])
        assert (await pair.contents())["large"] == LARGE.encode()
        await pair.other.documents.update("x", [document("large", "short")])
        assert (await pair.contents())["large"] == b"short"


async def test_a_snapshot_that_cannot_be_made_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with local_bus() as bus:
        async with running_memory(bus, tmp_path) as memory:
            await memory.banks.create("x", "x", documents(["a"]))
            await memory.care.snapshot()
            await memory.documents.insert("x", documents(["b"]))
            shutil.rmtree(tmp_path / "0" / "kept")
            await memory.care.snapshot()
            assert "no snapshot" in caplog.text
            assert (await memory.uuids("x")).keys() == {"a", "b"}
        async with running_memory(bus, tmp_path) as memory:
            assert (await memory.uuids("x")).keys() == {"a", "b"}
