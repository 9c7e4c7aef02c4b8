"""What creating a dataset may cost, and what is left of one that was refused; in memory and on a real nats-server."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from ayllu.actors.datasets.actor import MAX_BYTES, DatasetsActor, open_datasets
from ayllu.actors.datasets.content import ContentStore
from ayllu.actors.datasets.settings import DatasetsConfig
from ayllu.bus.bus import connect, local_bus
from ayllu.schemas import (
    Conflict,
    CreateDatasetRequest,
    Dataset,
    DatasetColumnType,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    TooLarge,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("dataset-bounds")]

_numbers = itertools.count()
TEXT = {"text": DatasetColumnType.text}


class Buses:
    """Opens actors on a bus of one kind, with ids that are this test's own."""

    def __init__(self, kind: str, request: pytest.FixtureRequest, folder: Path) -> None:
        self.kind = kind
        self.url = request.getfixturevalue("nats_url") if kind == "nats" else ""
        self.id = f"data {os.getpid()} {next(_numbers)} ä.*>"
        self.root = folder / "root"
        self.root.mkdir()
        self.copies = folder / "copies"

    @asynccontextmanager
    async def __call__(self, seconds: float = 30.0) -> AsyncIterator[DatasetsActor]:
        config = DatasetsConfig(roots=[str(self.root)])
        with anyio.fail_after(30):
            async with local_bus() if self.kind == "local" else connect(self.url) as bus:
                yield await open_datasets(bus, ContentStore(self.copies, config), seconds)

    def file(self, rows: int, name: str = "x.jsonl") -> str:
        (self.root / name).write_bytes(b'{"text": "a"}\n' * rows)
        return f"file://{self.root}/{name}"

    def request(self, url: str, **fields: object) -> CreateDatasetRequest:
        return CreateDatasetRequest(self.id, Dataset(TEXT, url, dict(fields)))


@pytest.fixture(params=["local", "nats"])
def buses(request: pytest.FixtureRequest, tmp_path: Path) -> Buses:
    return Buses(request.param, request, tmp_path)


async def test_what_was_read_is_left_nowhere(buses: Buses) -> None:
    async with buses() as actor:
        await actor.create(buses.request(buses.file(3)))
        kept = await actor.get(buses.id)
        await actor.delete(buses.id)
        await actor.create(buses.request("data:application/jsonl," + '{"text": "a"}\n' * 3))
        assert (await actor.get(buses.id)).fingerprint == kept.fingerprint
        await actor.delete(buses.id)
        with pytest.raises(InvalidRequest):
            await actor.create(buses.request("data:application/jsonl,{}"))
        with pytest.raises(NotFound):
            await actor.get(buses.id)
        assert not buses.copies.exists() or not list(buses.copies.iterdir())


async def test_the_largest_dataset_that_is_kept(buses: Buses) -> None:
    def of(size: int) -> CreateDatasetRequest:
        row = b'{"text": "%b"}\n' % (b"x" * (size * 3 // 4))
        return buses.request(f"data:application/jsonl;base64,{base64.b64encode(row).decode()}")

    async with buses() as actor:
        with pytest.raises(TooLarge):
            await actor.create(of(MAX_BYTES + 100))
        await actor.create(of(MAX_BYTES - 1000))
        assert len((await actor.get(buses.id)).content_url) > MAX_BYTES - 2000
        await actor.delete(buses.id)


async def test_of_many_that_create_one_wins_and_the_same_is_the_same(buses: Buses) -> None:
    async with buses() as actor:
        results: list[str] = []

        async def create(request: CreateDatasetRequest) -> None:
            try:
                await actor.create(request)
                results.append(str(request.dataset.metadata["by"]))
            except Conflict:
                results.append("refused")

        url = buses.file(10)
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(create, buses.request(url, by=number % 2))
        [winner] = set(results) - {"refused"}
        assert results.count(winner) == results.count("refused") == 4
        assert (await actor.get(buses.id)).metadata == {"by": int(winner)}
        await actor.delete(buses.id)


async def test_a_check_that_takes_too_long_ends(buses: Buses) -> None:
    async with buses(seconds=0) as actor:  # Not a moment: how fast rows are read must not decide.
        with pytest.raises(DeadlineExceeded):
            await actor.create(buses.request(buses.file(100_000)))
        with pytest.raises(NotFound):
            await actor.get(buses.id)


async def test_a_check_that_is_given_up_makes_room(buses: Buses) -> None:
    async with buses() as actor:
        request = buses.request(buses.file(200_000))
        for _ in range(4):  # More than are checked at once.
            with anyio.move_on_after(0.001):
                await actor.create(request)
        await actor.create(buses.request(buses.file(1, "small.jsonl")))
        assert (await actor.get(buses.id)).content_url.endswith("small.jsonl")
        await actor.delete(buses.id)


async def test_content_that_is_not_what_its_fingerprint_says(buses: Buses) -> None:
    async with buses() as actor:
        url = buses.file(3)
        await actor.create(buses.request(url))
        known = await actor.get(buses.id)
        await actor.delete(buses.id)
        buses.file(4)
        with pytest.raises(Conflict):
            await actor.create(CreateDatasetRequest(buses.id, known))
        buses.file(3)
        await actor.create(CreateDatasetRequest(buses.id, known))
        assert await actor.get(buses.id) == known
        await actor.delete(buses.id)
