"""Memory banks where processes are killed with -9 and files are damaged: what was acknowledged is there, batches are whole.

Real workers with their default embedding model, on a real nats-server.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from support.nats import killed_and_started
from support.processes import running_worker, wait_for

from ayllu.bus import client
from ayllu.bus import connect as connect_bus
from ayllu.bus.server import embedded_server
from ayllu.schemas import (
    AylluError,
    Conflict,
    MemoryBankDocument,
    MemoryBankDocuments,
    MemoryBankQuery,
    MemoryBanks,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

BANK = "notes"
SIZE = 5
"""Documents in a batch."""
DEADLINE = 8.0
"""Of each call, in seconds; a worker that was killed is noticed sooner."""
LARGE = f"<style>{'x' * 550_000}</style>"
"""What makes a document too large for a message of the bus, and adds nothing to its text."""


@dataclass(frozen=True)
class Worker:
    """A memory worker that is ready, and where it logs."""

    process: subprocess.Popen[str]
    log: Path

    def said(self) -> str:
        """Return what it has logged."""
        return self.log.read_text()

    def kill(self) -> None:
        """Kill it with -9, and wait until it is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(5)


@asynccontextmanager
async def memory_worker(bus_url: str, data_dir: Path) -> AsyncIterator[Worker]:
    """Run a memory worker until the end of the block; the event loop goes on while it starts and ends."""
    log = data_dir.with_suffix(".log")
    with log.open("w") as stderr:
        running = running_worker(["memory", "--data-dir", str(data_dir)], bus_url, stderr=stderr)
        process = await anyio.to_thread.run_sync(running.__enter__)
        try:
            yield Worker(process, log)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(partial(running.__exit__, None, None, None))


@dataclass(frozen=True)
class Banks:
    """The memory banks on a bus, whoever serves them."""

    url: str
    banks: MemoryBanks
    bank: MemoryBankDocuments

    async def uuids(self) -> set[str]:
        """Return the ids of all documents."""
        found: list[str] = []
        while True:
            after = found[-1] if found else ""
            page = [one.uuid async for one in self.bank.documents(BANK, after, 200)]
            found += page
            if len(page) < 200:
                return set(found)

    async def nearest(self, texts: Sequence[str]) -> list[str]:
        """Return for each text the document whose chunk is nearest to it."""
        queries = [
            MemoryBankQuery(text=text, mode="vector", k=1, include_documents=False)
            for text in texts
        ]
        results = [one async for one in self.bank.query(BANK, queries)]
        return [result.matches[0].document_uuid for result in results]


@asynccontextmanager
async def banks_on(bus_url: str) -> AsyncIterator[Banks]:
    async with connect_bus(bus_url) as bus:
        yield Banks(
            bus_url,
            client(MemoryBanks, bus, timeout=DEADLINE),
            client(MemoryBankDocuments, bus, timeout=DEADLINE),
        )


@asynccontextmanager
async def running_banks(folder: Path) -> AsyncIterator[Banks]:
    """Run a nats-server, and connect to it."""
    async with embedded_server(folder / "nats") as server, banks_on(server.url) as banks:
        yield banks


def text_of(number: int, part: int) -> str:
    return f"The {number}th report, part {part}, is about {number * SIZE + part} llamas."


def texts_of(number: int) -> list[str]:
    return [text_of(number, part) for part in range(SIZE)]


def uuids_of(number: int) -> list[str]:
    return [f"{number}-{part}" for part in range(SIZE)]


def batch(number: int) -> list[MemoryBankDocument]:
    """Return the documents of a batch; every third one has a large document."""
    made = []
    for part, (uuid, text) in enumerate(zip(uuids_of(number), texts_of(number), strict=True)):
        if part == 2 and number % 3 == 0:
            content, mime_type = f"<p>{text}</p>{LARGE}", "text/html"
        else:
            content, mime_type = text, "text/plain"
        made.append(MemoryBankDocument(uuid, content.encode(), {}, mime_type))
    return made


class Load:
    """Clients that insert batches and ask; what fails with a retryable error is tried again.

    Attributes:
        acknowledged: the numbers of the batches that were confirmed.
        answered: how many questions were.
        failures: the codes of the errors.
        longest: the seconds of the longest call.
    """

    def __init__(self, banks: Banks) -> None:
        self.acknowledged: set[int] = set()
        self.answered = 0
        self.failures: list[str] = []
        self.longest = 0.0
        self._banks = banks
        self._next = 0
        self._running = 0
        self._stopped = False
        self._progress = anyio.Event()

    async def insert(self) -> None:
        """Insert batch after batch until stopped."""
        async with self._client():
            while not self._stopped:
                self._next += 1
                number = self._next
                await self._until_done(partial(self._banks.bank.insert, BANK, batch(number)))
                self.acknowledged.add(number)
                self._progressed()

    async def ask(self) -> None:
        """Ask for what was acknowledged until stopped."""
        async with self._client():
            while not self._stopped:
                if self.acknowledged:
                    await self._until_done(partial(self._look, max(self.acknowledged)))
                    self.answered += 1
                    self._progressed()
                else:
                    await self._progress.wait()

    async def _look(self, number: int) -> None:
        assert await self._banks.nearest(texts_of(number)) == uuids_of(number)

    async def _until_done(self, call: Callable[[], Awaitable[None]]) -> None:
        failed = False
        while True:
            began = anyio.current_time()
            try:
                await call()
                return
            except Conflict:
                assert failed  # It had landed before it was tried again.
                return
            except AylluError as error:
                assert error.retryable, error.info
                failed = True
                self.failures.append(error.code)
            finally:
                self.longest = max(self.longest, anyio.current_time() - began)
            await anyio.sleep(0.02)  # as a client that retries does

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[None]:
        self._running += 1
        yield
        self._running -= 1
        self._progressed()

    def _progressed(self) -> None:
        self._progress.set()
        self._progress = anyio.Event()

    async def go_on(self, batches: int, questions: int = 0) -> None:
        """Wait until so many more batches are acknowledged, and questions answered."""
        inserted, answered = len(self.acknowledged) + batches, self.answered + questions
        while len(self.acknowledged) < inserted or self.answered < answered:
            await self._progress.wait()

    async def end(self) -> None:
        """Let every client end after what it does now."""
        self._stopped = True
        while self._running:
            await self._progress.wait()


@asynccontextmanager
async def load_on(banks: Banks, *, asking: int = 0) -> AsyncIterator[Load]:
    """Let three clients insert, and some ask."""
    load = Load(banks)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(load.insert)
        for _ in range(asking):
            tasks.start_soon(load.ask)
        yield load
        await load.end()


async def check(banks: Banks, load: Load) -> None:
    """All that was acknowledged is there and found, every batch is whole or absent, and no call outlived its deadline."""
    parts: dict[int, int] = {}
    for uuid in await banks.uuids():
        number = int(uuid.partition("-")[0])
        parts[number] = parts.get(number, 0) + 1
    assert parts == dict.fromkeys(parts, SIZE)
    assert load.acknowledged <= parts.keys()
    stats = await banks.bank.stats(BANK)
    assert (stats.documents, stats.chunks) == (SIZE * len(parts), SIZE * len(parts))
    for number in load.acknowledged:
        uuids = uuids_of(number)
        assert [one async for one in banks.bank.get(BANK, uuids)] == batch(number)
        if number % 10 == 1:
            assert await banks.nearest(texts_of(number)) == uuids
    assert load.longest < DEADLINE + 1


@pytest.mark.requirement("memory-kill-worker")
async def test_a_memory_worker_is_killed_while_it_inserts(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with anyio.fail_after(100):
        async with running_banks(tmp_path) as banks:
            async with memory_worker(banks.url, data):
                await banks.banks.create(BANK, "Notes", [])
            async with load_on(banks) as load:
                for _ in range(3):
                    async with memory_worker(banks.url, data) as worker:
                        await load.go_on(4)
                        worker.kill()
                async with memory_worker(banks.url, data):
                    await load.go_on(4)
                    await load.end()
                    await check(banks, load)
            assert load.failures
            async with memory_worker(banks.url, tmp_path / "other"):  # one that knows nothing
                await check(banks, load)


@pytest.mark.requirement("memory-kill-nats")
async def test_the_nats_server_is_killed_while_batches_are_inserted(tmp_path: Path) -> None:
    nats = tmp_path / "nats"
    with anyio.fail_after(100):
        async with (
            embedded_server(nats) as first,
            banks_on(first.url) as banks,
            memory_worker(first.url, tmp_path / "data") as worker,
        ):
            await banks.banks.create(BANK, "Notes", [])
            async with load_on(banks, asking=1) as load:
                await load.go_on(4, 2)
                async with killed_and_started(nats, first) as second:
                    await load.go_on(4, 2)
                    async with killed_and_started(nats, second):
                        await load.go_on(4, 2)
                        await load.end()
                        await check(banks, load)
                        assert load.failures
                        assert worker.process.poll() is None
                        assert "crashed" not in worker.said()
                        async with memory_worker(banks.url, tmp_path / "other"):
                            worker.kill()
                            await check(banks, load)


@pytest.mark.requirement("memory-second-worker")
async def test_one_of_two_memory_workers_is_killed(tmp_path: Path) -> None:
    with anyio.fail_after(100):
        async with (
            running_banks(tmp_path) as banks,
            memory_worker(banks.url, tmp_path / "one") as one,
            memory_worker(banks.url, tmp_path / "two"),
        ):
            await banks.banks.create(BANK, "Notes", [])
            async with load_on(banks, asking=3) as load:
                await load.go_on(4, 10)
                one.kill()
                await load.go_on(6, 10)
            # The calls that ran there are lost, at most one of each client.
            assert len(load.failures) <= 6
            assert set(load.failures) <= {"actor_lost", "unavailable"}
            await check(banks, load)


def kept(data: Path, pattern: str = "*") -> set[str]:
    """Return the names of the files of snapshots, whole or not."""
    return {path.name for path in (data / "memory" / "0" / "kept").glob(pattern)}


def named(data: Path) -> set[str]:
    """Return the names of the files of the snapshot that counts."""
    manifest = json.loads((data / "memory" / "0" / "manifest.json").read_bytes())
    return {bank[file]["name"] for bank in manifest["banks"] for file in ("tables", "graph")}


@pytest.mark.requirement("memory-kill-snapshot")
async def test_a_memory_worker_is_killed_while_it_makes_a_snapshot(tmp_path: Path) -> None:
    data = tmp_path / "data"
    padding = f"<style>{'x' * 4_000_000}</style>"
    with anyio.fail_after(100):
        async with running_banks(tmp_path) as banks:
            async with memory_worker(banks.url, data):
                await banks.banks.create(BANK, "Notes", batch(1))
                await banks.banks.create("large", "Large", [])
            before = named(data)
            assert (kept(data), len(before)) == (before, 4)
            async with memory_worker(banks.url, data) as worker:
                await banks.bank.insert(BANK, batch(2))
                for number in range(20):
                    content = f"<p>{number}</p>{padding}".encode()
                    made = MemoryBankDocument(str(number), content, {}, "text/html")
                    await banks.bank.insert("large", [made])
                # At its end it makes a snapshot of both banks, one after the other.
                worker.process.terminate()
                wait_for("the snapshot", lambda: bool(kept(data, "large-*.sqlite") - before))
                worker.kill()
            # It was in the middle: nothing of it counts.
            assert named(data) == before
            assert kept(data) > before
            async with memory_worker(banks.url, data) as worker:
                assert await banks.uuids() == {*uuids_of(1), *uuids_of(2)}
                for number in (1, 2):
                    assert await banks.nearest(texts_of(number)) == uuids_of(number)
                assert (await banks.bank.stats("large")).documents == 20
                assert "WARNING" not in worker.said()
            assert kept(data) == named(data)  # What was left is gone.


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


@pytest.mark.requirement("memory-snapshot-damage")
async def test_files_of_a_snapshot_are_damaged(tmp_path: Path) -> None:
    data = tmp_path / "data"
    damages: list[tuple[str, Callable[[bytes], bytes], str]] = [
        ("*.sqlite", truncate, "the snapshot of a bank is damaged"),
        ("*.sqlite", flip, "the snapshot of a bank is damaged"),
        ("*.graph", truncate, "the graph of a bank is damaged"),
        ("*.graph", flip, "the graph of a bank is damaged"),
    ]
    with anyio.fail_after(100):
        async with running_banks(tmp_path) as banks:
            async with memory_worker(banks.url, data):
                await banks.banks.create(BANK, "Notes", batch(1))
            for pattern, damage, said in damages:
                [name] = kept(data, pattern)
                file = anyio.Path(data / "memory" / "0" / "kept" / name)
                await file.write_bytes(damage(await file.read_bytes()))
                async with memory_worker(banks.url, data) as worker:
                    assert said in worker.said()
                    assert await banks.uuids() == set(uuids_of(1))
                    assert await banks.nearest(texts_of(1)) == uuids_of(1)
                    # Changed, so that there is a snapshot of it again.
                    await banks.bank.update(BANK, batch(1))
