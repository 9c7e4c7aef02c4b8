"""Two replicas and a plain dict agree after any history: of changes, restarts, snapshots, and damage to their files."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskGroup, TaskStatus
from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory import Memory, document, documents, running_memory

from ayllu.bus.bus import Bus, local_bus
from ayllu.schemas import Conflict, InvalidRequest, MemoryBankDocument, NotFound
from ayllu.schemas.filters import Eq

pytestmark = pytest.mark.asyncio

UUIDS = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3)
WORDS = st.sampled_from(["apple", "pear", "plum", "fig"])
CHANGES: st.SearchStrategy[tuple[str, str, list[str], str]] = st.one_of(
    st.tuples(st.sampled_from(["insert", "update"]), st.sampled_from("xy"), UUIDS, WORDS),
    st.tuples(st.just("delete"), st.sampled_from("xy"), UUIDS, st.just("")),
    st.tuples(st.sampled_from(["create", "drop"]), st.sampled_from("xy"), UUIDS, WORDS),
    st.tuples(
        st.sampled_from(["restart", "kill", "snapshot"]), st.just(""), st.just([]), st.just("")
    ),
)
Model = dict[str, dict[str, str]]


class Replicas:
    """Two replicas that can be restarted one by one; each lives in a task of its own."""

    def __init__(self, bus: Bus, folder: Path, tasks: TaskGroup) -> None:
        self.memories: dict[int, Memory] = {}
        self._bus = bus
        self._folder = folder
        self._tasks = tasks
        self._stop = [anyio.Event(), anyio.Event()]
        self._stopped = [anyio.Event(), anyio.Event()]

    async def start(self, number: int) -> None:
        self._stop[number], self._stopped[number] = anyio.Event(), anyio.Event()
        await self._tasks.start(self._run, number)

    async def _run(self, number: int, *, task_status: TaskStatus[None]) -> None:
        async with running_memory(self._bus, self._folder / str(number)) as memory:
            self.memories[number] = memory
            task_status.started()
            await self._stop[number].wait()
        self._stopped[number].set()

    async def stop(self, number: int) -> None:
        self._stop[number].set()
        await self._stopped[number].wait()

    async def restart(self, number: int, *, killed: bool) -> None:
        """Stop a replica, with its last snapshot or as if it had been killed before that, and start it again."""
        folder = self._folder / str(number)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        await self.stop(number)
        if killed:
            shutil.rmtree(folder)
            for path, data in before.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        await self.start(number)


@asynccontextmanager
async def running_replicas(folder: Path) -> AsyncIterator[Replicas]:
    async with local_bus() as bus, anyio.create_task_group() as tasks:
        replicas = Replicas(bus, folder, tasks)
        for number in range(2):
            await replicas.start(number)
        yield replicas
        for number in range(2):
            await replicas.stop(number)


def expected(model: Model, change: str, bank: str, uuids: list[str]) -> type[Exception] | None:
    """Return the error that a change must meet."""
    if change == "create" and bank in model:
        return Conflict if len(set(uuids)) == len(uuids) else InvalidRequest
    if change != "drop" and len(set(uuids)) < len(uuids):
        return InvalidRequest
    if change != "create" and bank not in model:
        return NotFound
    there = [uuid for uuid in uuids if uuid in model.get(bank, {})]
    if change == "insert" and there:
        return Conflict
    if change in ("update", "delete") and len(there) < len(uuids):
        return NotFound
    return None


def change_model(model: Model, change: str, bank: str, uuids: list[str], word: str) -> None:
    if change == "drop":
        del model[bank]
    elif change == "create":
        model[bank] = dict.fromkeys(uuids, word)
    elif change == "delete":
        for uuid in uuids:
            del model[bank][uuid]
    else:
        model[bank] |= dict.fromkeys(uuids, word)


async def make(memory: Memory, change: str, bank: str, uuids: list[str], word: str) -> None:
    stored = [document(uuid, f"{word} {uuid}", word=word) for uuid in uuids]
    match change:
        case "create":
            await memory.banks.create(bank, bank, stored)
        case "drop":
            await memory.banks.drop(bank)
        case "insert":
            await memory.documents.insert(bank, stored)
        case "update":
            await memory.documents.update(bank, stored)
        case "delete":
            await memory.documents.delete(bank, uuids)


async def check(memory: Memory, model: Model) -> None:
    """All ways to find documents agree with the model."""
    assert await memory.list_banks() == sorted(model)
    for bank, contents in model.items():
        found = await memory.uuids(bank)
        assert found == {uuid: f"{word} {uuid}".encode() for uuid, word in contents.items()}
        assert (await memory.documents.stats(bank)).documents == len(contents)
        for word in set(contents.values()):
            fitting = {uuid for uuid, theirs in contents.items() if theirs == word}
            for fields in (
                {"text": word, "mode": "text"},
                {"filter": Eq("word", word)},
                {"text": "x", "mode": "vector", "filter": Eq("word", word)},
            ):
                result = await memory.query(bank, **fields)
                assert {match.document_uuid for match in result.matches} == fitting
        for uuid, word in contents.items():
            result = await memory.query(bank, text=f"{word} {uuid}", mode="vector", k=1)
            assert [match.document_uuid for match in result.matches] == [uuid]


@pytest.mark.requirement("memory-replicas-agree")
@settings(max_examples=25, deadline=None)
@given(history=st.lists(CHANGES, min_size=1, max_size=20), seed=st.integers(0, 1 << 16))
async def test_replicas_and_a_dict_agree(
    history: list[tuple[str, str, list[str], str]], seed: int
) -> None:
    choose = random.Random(seed)
    model: Model = {}
    with tempfile.TemporaryDirectory() as folder, anyio.fail_after(60):
        async with running_replicas(Path(folder)) as replicas:
            for change, bank, uuids, word in history:
                number = choose.randrange(2)
                memory = replicas.memories[number]
                if change in ("restart", "kill"):
                    await replicas.restart(number, killed=change == "kill")
                elif change == "snapshot":
                    await memory.care.snapshot()
                elif (error := expected(model, change, bank, uuids)) is None:
                    await make(memory, change, bank, uuids, word)
                    change_model(model, change, bank, uuids, word)
                else:
                    with pytest.raises(error):
                        await make(memory, change, bank, uuids, word)
            for memory in replicas.memories.values():
                await check(memory, model)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


@pytest.mark.requirement("memory-snapshot-damage")
@pytest.mark.parametrize(
    "damage", [truncate, flip, lambda data: b""], ids=["cut", "flipped", "empty"]
)
@pytest.mark.parametrize("name", ["*.sqlite", "*.graph", "manifest.json"])
async def test_a_damaged_snapshot_is_noticed_and_made_anew(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    async with local_bus() as bus:
        async with running_memory(bus, tmp_path) as memory:
            await memory.banks.create("x", "x", documents(f"d{n}" for n in range(200)))
            before = await memory.uuids("x")
        found = list((tmp_path / "0").rglob(name))
        assert found
        for path in found:
            path.write_bytes(damage(path.read_bytes()))
        async with running_memory(bus, tmp_path) as memory:
            assert await memory.uuids("x") == before
            for uuid in ("d0", "d199"):
                result = await memory.query("x", text=f"text of {uuid}", mode="vector", k=1)
                assert [match.document_uuid for match in result.matches] == [uuid]
        # What was mended is kept again.
        async with running_memory(bus, tmp_path) as memory:
            assert await memory.uuids("x") == before


@pytest.mark.requirement("memory-snapshot")
async def test_a_restart_reads_only_the_rest_of_the_log(tmp_path: Path) -> None:
    async with local_bus() as bus:
        async with running_memory(bus, tmp_path) as memory:
            await memory.banks.create("x", "x", documents(f"d{n}" for n in range(50)))
            await memory.replica.current()
        # What the snapshot holds is not asked of the log again: there it may have gone.
        streams = bus.storage.streams
        await streams.purge("BANKS", "ayllu.v1.bank.x.*")
        async with running_memory(bus, tmp_path) as memory:
            assert len(await memory.uuids("x")) == 50
            await memory.documents.insert("x", [document("new")])
        async with running_memory(bus, tmp_path) as memory:
            assert len(await memory.uuids("x")) == 51


@pytest.mark.requirement("memory-snapshot")
async def test_a_snapshot_of_another_log_is_not_used(tmp_path: Path) -> None:
    async with local_bus() as bus, running_memory(bus, tmp_path) as memory:
        await memory.banks.create("x", "x", documents("ab"))
    async with local_bus() as bus, running_memory(bus, tmp_path) as memory:
        assert await memory.list_banks() == []


@pytest.mark.requirement("memory-snapshot")
async def test_replicas_of_one_machine_have_folders_of_their_own(tmp_path: Path) -> None:
    async with local_bus() as bus, running_memory(bus, tmp_path) as one:
        async with running_memory(bus, tmp_path) as other:
            await one.banks.create("x", "x", documents("ab"))
            assert await other.list_banks() == ["x"]
        assert files(tmp_path) == ["0", "1"]


@pytest.mark.requirement("memory-whole-requests")
async def test_nobody_sees_half_a_request(tmp_path: Path) -> None:
    async with (
        local_bus() as bus,
        running_memory(bus, tmp_path / "a") as writer,
        running_memory(bus, tmp_path / "b") as reader,
    ):
        uuids = [f"d{n}" for n in range(40)]
        await writer.banks.create("x", "x", [document(uuid, "round 0") for uuid in uuids])
        async with anyio.create_task_group() as tasks:

            async def write() -> None:
                for number in range(1, 15):
                    texts = [document(uuid, f"round {number}") for uuid in uuids]
                    await writer.documents.update("x", texts)
                tasks.cancel_scope.cancel()

            tasks.start_soon(write)
            while True:
                found = await reader.uuids("x")
                assert len(found) == 40
                assert len(set(found.values())) == 1


@pytest.mark.requirement("memory-operations")
async def test_a_document_of_any_metadata_comes_back(tmp_path: Path) -> None:
    metadata = {"a": {"b": [1, 2.5, None, "x"]}, "ü": True, "": {}, "n": 2**70}
    wanted = MemoryBankDocument("m", b"some text", metadata, "text/markdown")
    async with local_bus() as bus, running_memory(bus, tmp_path) as memory:
        await memory.banks.create("x", "x", [wanted])
        assert [one async for one in memory.documents.get("x", ["m"])] == [wanted]
