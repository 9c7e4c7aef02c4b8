"""Memory banks: what clients may do, and what is refused; on the bus within the process and on a real nats-server."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from support.memory import Memory, document, documents, running_memory

from ayllu.bus.bus import Bus, connect, local_bus
from ayllu.bus.client import client
from ayllu.bus.service import serve
from ayllu.schemas import (
    Conflict,
    InvalidRequest,
    MemoryBankDocument,
    MemoryBankDocuments,
    MemoryBanks,
    NotFound,
    Unsupported,
)
from ayllu.schemas.memory import MAX_DOCUMENTS

pytestmark = pytest.mark.asyncio

_numbers = itertools.count()


class Buses:
    """Opens buses of one kind; each leads to the same log."""

    def __init__(self, kind: str, request: pytest.FixtureRequest) -> None:
        self.kind = kind
        self.url = request.getfixturevalue("nats_url") if kind == "nats" else ""
        self.bank = f"bank {os.getpid()} {next(_numbers)} ä.*>"

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Bus]:
        async with local_bus() if self.kind == "local" else connect(self.url) as bus:
            yield bus


@pytest.fixture(params=["local", "nats"])
def buses(request: pytest.FixtureRequest) -> Buses:
    return Buses(request.param, request)


@asynccontextmanager
async def filled(bus: Bus, folder: Path, bank: str, count: int = 3) -> AsyncIterator[Memory]:
    async with running_memory(bus, folder) as memory:
        await memory.banks.create(bank, "Notes", documents(f"d{n}" for n in range(count)))
        yield memory


async def state(memory: Memory, bank: str) -> tuple[dict[str, bytes], int]:
    return await memory.uuids(bank), (await memory.documents.stats(bank)).sequence


@pytest.mark.requirement("memory-operations")
async def test_documents_are_kept_changed_and_removed(buses: Buses, tmp_path: Path) -> None:
    async with buses() as bus, filled(bus, tmp_path, buses.bank) as memory:
        assert buses.bank in await memory.list_banks()
        await memory.documents.insert(buses.bank, [document("new", "fresh words", year=2026)])
        await memory.documents.update(buses.bank, [document("d0", "other words")])
        await memory.documents.delete(buses.bank, ["d1"])
        assert await memory.uuids(buses.bank) == {
            "d0": b"other words",
            "d2": b"text of d2",
            "new": b"fresh words",
        }
        got = [one async for one in memory.documents.get(buses.bank, ["new", "d0"])]
        assert got == [
            document("new", "fresh words", year=2026),
            document("d0", "other words"),
        ]
        await memory.banks.drop(buses.bank)
        assert buses.bank not in await memory.list_banks()
        with pytest.raises(NotFound):
            await memory.uuids(buses.bank)


@pytest.mark.requirement("memory-operations")
async def test_ids_are_any_text(buses: Buses, tmp_path: Path) -> None:
    uuids = ["a", "A", "a ", "a\0", "a\0b", '"', "'", "%", "*.>", "=", "\n", "ä", "\U0001f600"]
    async with buses() as bus, filled(bus, tmp_path, buses.bank, count=0) as memory:
        for uuid in uuids:
            await memory.documents.insert(buses.bank, [document(uuid)])
        assert list(await memory.uuids(buses.bank)) == sorted(uuids)
        got = [one async for one in memory.documents.get(buses.bank, uuids)]
        assert got == documents(uuids)
        await memory.documents.update(buses.bank, [document("a\0", "other words")])
        await memory.documents.delete(buses.bank, ["a", "\n"])
        found = await memory.query(buses.bank, text="other words", k=1)
        assert [one.uuid for one in found.documents] == ["a\0"]
        assert set(await memory.uuids(buses.bank)) == set(uuids) - {"a", "\n"}


@pytest.mark.requirement("memory-operations")
async def test_the_bus_reaches_all_operations(buses: Buses, tmp_path: Path) -> None:
    async with (
        buses() as bus,
        running_memory(bus, tmp_path) as memory,
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(serve, bus, memory.banks)
        await tasks.start(serve, bus, memory.documents)
        banks, bank = client(MemoryBanks, bus), client(MemoryBankDocuments, bus)
        await banks.create(buses.bank, "Notes", [document("a")])
        await bank.insert(buses.bank, [document("b")])
        assert [one.uuid async for one in bank.get(buses.bank, ["b", "a"])] == ["b", "a"]
        with pytest.raises(Conflict):
            await bank.insert(buses.bank, [document("b")])
        await banks.drop(buses.bank)
        tasks.cancel_scope.cancel()


REFUSED_INSERTS: list[tuple[str, type[Exception], list[MemoryBankDocument]]] = [
    ("known", Conflict, [document("new"), document("d1")]),
    ("twice", InvalidRequest, [document("new"), document("other"), document("new")]),
    ("none", InvalidRequest, []),
    ("empty id", InvalidRequest, [document("")]),
    (
        "empty content",
        InvalidRequest,
        [document("new"), MemoryBankDocument("e", b"", {}, "text/plain")],
    ),
    ("only space", InvalidRequest, [document("new"), document("e", " \n\t ")]),
    ("picture", Unsupported, [document("new"), document("e", "x", "image/png")]),
    (
        "not UTF-8",
        InvalidRequest,
        [document("new"), MemoryBankDocument("e", b"\xff\xfe\xfa", {}, "text/plain")],
    ),
    ("too many", InvalidRequest, documents(f"n{n}" for n in range(MAX_DOCUMENTS + 1))),
]


@pytest.mark.requirement("memory-refused-whole")
@pytest.mark.parametrize(
    ("error", "wrong"),
    [one[1:] for one in REFUSED_INSERTS],
    ids=[one[0] for one in REFUSED_INSERTS],
)
async def test_a_wrong_insert_changes_nothing(
    buses: Buses, tmp_path: Path, error: type[Exception], wrong: list[MemoryBankDocument]
) -> None:
    async with buses() as bus, filled(bus, tmp_path, buses.bank) as memory:
        before = await state(memory, buses.bank)
        with pytest.raises(error):
            await memory.documents.insert(buses.bank, wrong)
        assert await state(memory, buses.bank) == before


@pytest.mark.requirement("memory-refused-whole")
async def test_other_wrong_changes_change_nothing(buses: Buses, tmp_path: Path) -> None:
    async with buses() as bus, filled(bus, tmp_path, buses.bank) as memory:
        before = await state(memory, buses.bank)
        with pytest.raises(NotFound):
            await memory.documents.update(buses.bank, documents(["d0", "unknown"]))
        with pytest.raises(NotFound):
            await memory.documents.delete(buses.bank, ["d0", "unknown"])
        with pytest.raises(NotFound):
            [one async for one in memory.documents.get(buses.bank, ["d0", "unknown"])]
        with pytest.raises(Conflict):
            await memory.banks.create(buses.bank, "again", [document("x")])
        with pytest.raises(NotFound):
            await memory.documents.insert("no such bank", [document("x")])
        with pytest.raises(NotFound):
            await memory.banks.drop("no such bank")
        with pytest.raises(InvalidRequest):
            await memory.banks.create("new", "n", [], chunk_size=10_000)
        with pytest.raises(InvalidRequest):
            await memory.banks.create("new", "n", [], chunk_size=10, chunk_overlap=10)
        with pytest.raises(NotFound):
            await memory.banks.create("new", "n", [], embedding_model="unknown")
        with pytest.raises(Conflict):
            await memory.banks.create(buses.bank, "n", [document("x", " ")] * 0)
        assert await state(memory, buses.bank) == before
        assert "new" not in await memory.list_banks()


@pytest.mark.requirement("memory-refused-whole")
async def test_a_bank_with_a_wrong_document_is_not_created(buses: Buses, tmp_path: Path) -> None:
    async with buses() as bus, running_memory(bus, tmp_path) as memory:
        with pytest.raises(InvalidRequest):
            await memory.banks.create(buses.bank, "n", [document("a"), document("b", " ")])
        assert buses.bank not in await memory.list_banks()


@pytest.mark.requirement("memory-large-documents")
async def test_a_document_larger_than_a_message_is_kept(buses: Buses, tmp_path: Path) -> None:
    large = "word " * 150_000
    async with buses() as bus, filled(bus, tmp_path / "a", buses.bank) as memory:
        await memory.documents.insert(buses.bank, [document("large", large), document("small")])
        async with running_memory(bus, tmp_path / "b") as other:
            assert (await other.uuids(buses.bank))["large"] == large.encode()
            await memory.documents.update(buses.bank, [document("large", "short")])
            assert (await other.uuids(buses.bank))["large"] == b"short"
        assert await objects_left(bus) == []


async def objects_left(bus: Bus) -> list[str]:
    objects = await bus.storage.objects("banks", max_bytes=8 << 30)
    return sorted(await objects.names())


@pytest.mark.requirement("memory-read-your-writes")
async def test_any_replica_answers_with_what_was_acknowledged(buses: Buses, tmp_path: Path) -> None:
    async with (
        buses() as bus,
        filled(bus, tmp_path / "a", buses.bank) as one,
        running_memory(bus, tmp_path / "b") as other,
    ):
        for number in range(30):
            writer, reader = (one, other) if number % 2 else (other, one)
            await writer.documents.insert(buses.bank, [document(f"n{number}")])
            assert f"n{number}" in await reader.uuids(buses.bank)
        assert await one.uuids(buses.bank) == await other.uuids(buses.bank)


@pytest.mark.requirement("memory-one-winner")
async def test_of_two_that_insert_the_same_document_one_wins(buses: Buses, tmp_path: Path) -> None:
    won: list[str] = []
    lost: list[str] = []
    async with (
        buses() as bus,
        filled(bus, tmp_path / "a", buses.bank) as one,
        running_memory(bus, tmp_path / "b") as other,
    ):

        async def insert(memory: Memory, name: str, number: int) -> None:
            try:
                await memory.documents.insert(buses.bank, [document(f"n{number}", name)])
                won.append(f"{name} {number}")
            except Conflict:
                lost.append(f"{name} {number}")

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(insert, one, "one", number)
                tasks.start_soon(insert, other, "other", number)
        found = await one.uuids(buses.bank)
        assert sorted(won) == sorted(
            f"{text.decode()} {uuid[1:]}" for uuid, text in found.items() if uuid.startswith("n")
        )
        assert len(won) == len(lost) == 20
        assert await other.uuids(buses.bank) == found


@pytest.mark.requirement("memory-drop-and-create")
async def test_a_bank_that_is_created_again_is_empty_everywhere(
    buses: Buses, tmp_path: Path
) -> None:
    async with buses() as bus, filled(bus, tmp_path / "a", buses.bank) as memory:
        async with running_memory(bus, tmp_path / "b") as other:
            await memory.banks.drop(buses.bank)
            await memory.banks.create(buses.bank, "again", [document("only")])
            assert list(await other.uuids(buses.bank)) == ["only"]
        async with running_memory(bus, tmp_path / "c") as fresh:
            assert list(await fresh.uuids(buses.bank)) == ["only"]


@pytest.mark.requirement("memory-log-bounded")
async def test_the_log_does_not_grow_with_churn(buses: Buses, tmp_path: Path) -> None:
    async with buses() as bus, filled(bus, tmp_path, buses.bank, count=10) as memory:
        uuids = [f"d{n}" for n in range(10)]
        before = (await bus.storage.streams.state("BANKS")).count
        for _ in range(20):
            await memory.documents.update(buses.bank, documents(uuids))
        assert (await bus.storage.streams.state("BANKS")).count == before
        await memory.banks.drop(buses.bank)
        await memory.list_banks()
        # The marker of the bank is left, and goes by itself.
        assert (await bus.storage.streams.state("BANKS")).count == before - 10
