"""Events on the bus that are no turns': the ends of jobs, and changes of documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from msgspec.structs import replace
from support.buses import buses
from support.jobs import running_training, sft_request
from support.memory import documents, running_memory

from ayllu.actors.events import EVENTS
from ayllu.actors.jobs import events as job_events
from ayllu.actors.jobs.jobs import open_jobs
from ayllu.actors.jobs.records import JOB_EVENTS
from ayllu.actors.memory.writer import Writer
from ayllu.bus import local_bus
from ayllu.bus.bus import Bus
from ayllu.schemas import (
    BusError,
    Conflict,
    DocumentsChanged,
    JobEnded,
    Reply,
    decode,
)

pytestmark = pytest.mark.asyncio
T = TypeVar("T", bound=Reply)


async def events(bus: Bus, type_: type[T]) -> list[tuple[str, T]]:
    """Return the subjects after ``ayllu.v1.event.``, and the events that stand there."""
    async with bus.storage.streams.replay(EVENTS.name) as entries:
        return [
            (one.subject.removeprefix("ayllu.v1.event."), decode(one.payload, type_))
            async for one in entries
        ]


@pytest.mark.requirement("event-jobs")
@pytest.mark.parametrize("kind", ["local", "nats"])
async def test_the_end_of_a_job_is_an_event(kind: str, tmp_path: Path) -> None:
    async with buses(kind, tmp_path) as bus, running_training(bus, tmp_path) as training:
        await training.training.supervised_fine_tune(sft_request("good/1"))
        await training.ended("good/1")
        [(subject, event)] = await events(bus, JobEnded)
        assert subject == "job.sft.completed"
        status = await training.told.status("good/1")
        assert (event.job, event.kind, event.status) == ("good/1", "sft", "completed")
        assert (event.ended_at, event.error) == (status.completed_at, "")


@pytest.mark.requirement("event-jobs")
async def test_the_end_of_a_job_that_was_cancelled_is_an_event(tmp_path: Path) -> None:
    async with local_bus() as bus, running_training(bus, tmp_path, trainers=0) as training:
        await training.training.supervised_fine_tune(sft_request("off"))
        await training.told.cancel("off")
        [(subject, event)] = await events(bus, JobEnded)
        assert subject == "job.sft.cancelled"
        assert event.error.startswith("cancelled: ")


@pytest.mark.requirement("event-jobs")
async def test_the_end_of_a_job_is_told_once_whoever_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with local_bus() as bus, running_training(bus, tmp_path, trainers=0) as training:
        await training.training.supervised_fine_tune(sft_request("job"))
        jobs = await open_jobs(bus)

        async def lost(*_: object) -> None:
            raise BusError("the worker dies here")

        with monkeypatch.context() as patch:
            patch.setattr(job_events.JobEvents, "tell_status", lost)
            with pytest.raises(BusError):
                await training.told.cancel("job")
        assert len(await events(bus, JobEnded)) == 1
        # Another one settles what has ended.
        record = await jobs.record("job")
        await jobs.settle(record)
        assert len(await events(bus, JobEnded)) == 1
        # Later than the bus remembers ids: its own events say that it was told.
        await jobs.settle(replace(record, digest="another id"))
        assert len(await events(bus, JobEnded)) == 1
        assert (await bus.storage.streams.state(JOB_EVENTS.name)).count == 2


@pytest.mark.requirement("event-documents")
@pytest.mark.parametrize("kind", ["local", "nats"])
async def test_changes_of_documents_are_events(kind: str, tmp_path: Path) -> None:
    async with buses(kind, tmp_path) as bus, running_memory(bus, tmp_path / "memory") as memory:
        await memory.banks.create("empty/1", "Empty", [])
        await memory.banks.create("full", "Full", documents(["z"]))
        await memory.documents.insert("empty/1", documents(["a", "b"]))
        await memory.documents.update("empty/1", documents(["b"]))
        with pytest.raises(Conflict):
            await memory.documents.insert("empty/1", documents(["a"]))
        await memory.documents.delete("empty/1", ["a"])
        await memory.banks.drop("empty/1")
        assert await events(bus, DocumentsChanged) == [
            ("document.full.inserted", DocumentsChanged("full", "inserted", ["z"])),
            ("document.empty=2F1.inserted", DocumentsChanged("empty/1", "inserted", ["a", "b"])),
            ("document.empty=2F1.updated", DocumentsChanged("empty/1", "updated", ["b"])),
            ("document.empty=2F1.deleted", DocumentsChanged("empty/1", "deleted", ["a"])),
        ]


@pytest.mark.requirement("event-documents")
async def test_a_change_is_told_though_its_caller_hangs_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with local_bus() as bus, running_memory(bus, tmp_path) as memory:
        await memory.banks.create("bank", "Bank", [])
        tell, append = Writer.tell, bus.storage.streams.append
        ended = anyio.Event()

        async def tell_late(writer: Writer, *change: Any) -> None:
            with anyio.CancelScope() as scope:
                scope.cancel()  # As its caller does.
                await tell(writer, *change)
            ended.set()

        async def append_late(*args: Any, **options: Any) -> Any:
            await anyio.lowlevel.checkpoint()
            return await append(*args, **options)

        monkeypatch.setattr(Writer, "tell", tell_late)
        monkeypatch.setattr(bus.storage.streams, "append", append_late)
        await memory.documents.insert("bank", documents(["a"]))
        await ended.wait()
        assert [one.documents for _, one in await events(bus, DocumentsChanged)] == [["a"]]


@pytest.mark.requirement("event-documents")
async def test_a_change_stands_though_it_cannot_be_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with local_bus() as bus, running_memory(bus, tmp_path) as memory:
        await memory.banks.create("bank", "Bank", [])
        # As when the stream is gone.
        del bus.storage.streams._streams[EVENTS.name]  # type: ignore[attr-defined]
        await memory.documents.insert("bank", documents(["a"]))
        assert await memory.uuids("bank") == {"a": b"text of a"}
        assert "could not be stored" in caplog.text
