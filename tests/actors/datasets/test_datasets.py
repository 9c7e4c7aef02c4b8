"""The Datasets API: what clients may do, and what is refused; on the bus within the process and on a real nats-server."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from ayllu.actors.datasets.actor import DatasetsActor, open_datasets
from ayllu.actors.datasets.content import ContentStore
from ayllu.actors.datasets.settings import DatasetsConfig
from ayllu.bus.bus import Bus, connect, local_bus
from ayllu.bus.client import client
from ayllu.bus.service import serve
from ayllu.schemas import (
    AylluError,
    Conflict,
    CreateDatasetRequest,
    Dataset,
    DatasetColumnType,
    Datasets,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    TooLarge,
)

pytestmark = pytest.mark.asyncio

_numbers = itertools.count()
TEXT, NUMBER = DatasetColumnType.text, DatasetColumnType.number
ROWS = b'{"text": "a", "n": 1}\n{"text": "b", "n": 2}\n'
INLINE = "data:application/jsonl," + ROWS.decode()


class Place:
    """A bus of one kind, a root with a file, and ids that are this test's own."""

    def __init__(self, kind: str, request: pytest.FixtureRequest, folder: Path) -> None:
        self.kind = kind
        self.url = request.getfixturevalue("nats_url") if kind == "nats" else ""
        self.prefix = f"data {os.getpid()} {next(_numbers)} ä.*> "
        self.folder = folder
        self.root = folder / "root"
        self.root.mkdir()
        self.file = self.root / "rows.jsonl"
        self.file.write_bytes(ROWS)

    @asynccontextmanager
    async def bus(self) -> AsyncIterator[Bus]:
        with anyio.fail_after(30):
            async with local_bus() if self.kind == "local" else connect(self.url) as bus:
                yield bus

    async def open(self, bus: Bus) -> DatasetsActor:
        config = DatasetsConfig(roots=[str(self.root)], max_bytes=10_000)
        return await open_datasets(bus, ContentStore(self.folder / "copies", config))

    @asynccontextmanager
    async def actor(self) -> AsyncIterator[DatasetsActor]:
        async with self.bus() as bus:
            yield await self.open(bus)

    def request(
        self,
        uuid: str = "a",
        url: str = "",
        columns: dict[str, DatasetColumnType] | None = None,
        **metadata: object,
    ) -> CreateDatasetRequest:
        dataset = Dataset(columns or {"text": TEXT}, url or self.file.as_uri(), metadata)
        return CreateDatasetRequest(self.prefix + uuid, dataset)

    async def listed(self, actor: Datasets) -> list[str]:
        """Return this test's ids, in their order."""
        uuids = [info.uuid async for info in actor.list()]
        return [uuid.removeprefix(self.prefix) for uuid in uuids if uuid.startswith(self.prefix)]


@pytest.fixture(params=["local", "nats"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.param, request, tmp_path)


@pytest.mark.requirement("dataset-operations")
async def test_datasets_are_kept_listed_and_deleted(place: Place) -> None:
    async with place.actor() as actor:
        digest = f"sha256:{hashlib.sha256(ROWS).hexdigest()}"
        for uuid in ("b", "a", "c"):
            await actor.create(place.request(uuid, columns={"text": TEXT, "n": NUMBER}, year=2026))
        assert await place.listed(actor) == ["a", "b", "c"]
        found = await actor.get(place.prefix + "a")
        columns = {"text": TEXT, "n": NUMBER}
        assert found == Dataset(columns, place.file.as_uri(), {"year": 2026}, digest)
        [info] = [info async for info in actor.list() if info.uuid == place.prefix + "b"]
        assert (info.rows, info.bytes, info.dataset) == (2, len(ROWS), found)
        await actor.delete(place.prefix + "a")
        assert await place.listed(actor) == ["b", "c"]
        for operation in (actor.get, actor.delete):
            with pytest.raises(NotFound):
                await operation(place.prefix + "a")
        assert place.file.read_bytes() == ROWS  # Its content stays.


@pytest.mark.requirement("dataset-operations")
async def test_the_bus_reaches_all_operations(place: Place) -> None:
    async with place.bus() as bus, anyio.create_task_group() as tasks:
        await tasks.start(serve, bus, await place.open(bus))
        datasets = client(Datasets, bus)
        await datasets.create(place.request())
        assert (await datasets.get(place.prefix + "a")).fingerprint is not None
        assert await place.listed(datasets) == ["a"]
        with pytest.raises(InvalidRequest) as found:
            await datasets.create(place.request("b", columns={"text": NUMBER}))
        assert [bad["number"] for bad in found.value.details["bad"]] == [1, 2]
        await datasets.delete(place.prefix + "a")
        assert await place.listed(datasets) == []
        tasks.cancel_scope.cancel()


@pytest.mark.requirement("dataset-operations")
async def test_datasets_outlive_their_actor(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    place = Place("nats", request, tmp_path)
    async with place.actor() as actor:
        await actor.create(place.request())
        kept = await actor.get(place.prefix + "a")
    async with place.actor() as actor, place.actor() as other:
        assert await actor.get(place.prefix + "a") == kept
        await other.delete(place.prefix + "a")
        assert await place.listed(actor) == []


@pytest.mark.requirement("dataset-operations")
async def test_the_same_request_again_is_the_same_dataset(place: Place) -> None:
    async with place.actor() as actor:
        await actor.create(place.request(year=1))
        kept = await actor.get(place.prefix + "a")
        await actor.create(place.request(year=1))
        await actor.create(CreateDatasetRequest(place.prefix + "a", kept))
        for other in (
            place.request(year=2),
            place.request(year=1, columns={"n": NUMBER}),
            place.request(year=1, url=INLINE),
        ):
            with pytest.raises(Conflict):
                await actor.create(other)
        assert await actor.get(place.prefix + "a") == kept
        await actor.delete(place.prefix + "a")
        await actor.create(place.request(year=2))
        await actor.delete(place.prefix + "a")


@pytest.mark.requirement("dataset-operations")
async def test_a_changed_file_is_noticed(place: Place) -> None:
    async with place.actor() as actor:
        await actor.create(place.request())
        known = await actor.get(place.prefix + "a")
        place.file.write_bytes(ROWS + ROWS)
        with pytest.raises(Conflict):
            await actor.create(CreateDatasetRequest(place.prefix + "b", known))
        # The same description of another content, under an id that is taken.
        with pytest.raises(Conflict):
            await actor.create(place.request())
        assert await actor.get(place.prefix + "a") == known
        await actor.delete(place.prefix + "a")


@pytest.mark.requirement("dataset-operations")
async def test_ids_are_any_text(place: Place) -> None:
    uuids = ["A", "a", "a ", '"', "%", "*.>", "=", "\n", "ä", "\U0001f600"]
    async with place.actor() as actor:
        for uuid in uuids:
            await actor.create(place.request(uuid))
        assert await place.listed(actor) == sorted(uuids)
        for uuid in uuids:
            await actor.delete(place.prefix + uuid)


@pytest.mark.requirement("dataset-refused")
@pytest.mark.parametrize("uuid", ["", "x" * 161, "ä" * 160])
async def test_ids_that_no_dataset_has(place: Place, uuid: str) -> None:
    async with place.actor() as actor:
        with pytest.raises(InvalidRequest):
            await actor.create(CreateDatasetRequest(uuid, Dataset({"text": TEXT}, INLINE)))
        for operation in (actor.get, actor.delete):
            with pytest.raises(NotFound if not uuid else AylluError):
                await operation(uuid)


BAD: list[tuple[str, dict[str, DatasetColumnType], type[AylluError]]] = [
    (INLINE, {"missing": TEXT}, InvalidRequest),
    (INLINE, {"text": NUMBER}, InvalidRequest),
    (INLINE, {"": TEXT}, InvalidRequest),
    ("data:application/jsonl,", {"text": TEXT}, InvalidRequest),  # Empty.
    ('data:application/jsonl,{"text": "a"}\n{"text": ', {"text": TEXT}, InvalidRequest),
    ("data:application/jsonl;base64,/w==", {"text": TEXT}, InvalidRequest),  # Not UTF-8.
    ("data:application/jsonl;base64,=", {"text": TEXT}, InvalidRequest),
    ("data:text/csv,text%0Aa,b", {"text": TEXT}, InvalidRequest),
    ("data:text/html,x", {"text": TEXT}, InvalidRequest),
    ("data:application/jsonl," + "x" * 10_001, {"text": TEXT}, TooLarge),
    ("file:///etc/passwd.jsonl", {"text": TEXT}, PermissionDenied),
    ("http://127.0.0.1:1/x.jsonl", {"text": TEXT}, PermissionDenied),
    ("http://[::ffff:10.0.0.1]/x.jsonl", {"text": TEXT}, PermissionDenied),
    ("http://2130706433/x.jsonl", {"text": TEXT}, PermissionDenied),
]


@pytest.mark.requirement("dataset-refused")
@pytest.mark.parametrize(("url", "columns", "error"), BAD)
async def test_bad_input_keeps_nothing(
    place: Place, url: str, columns: dict[str, DatasetColumnType], error: type[AylluError]
) -> None:
    async with place.actor() as actor:
        with pytest.raises(AylluError) as found:
            await actor.create(place.request(url=url, columns=columns))
        assert issubclass(type(found.value), error)
        assert str(place.folder) not in found.value.message
        assert await place.listed(actor) == []
        assert not list((place.folder / "copies").glob("*"))


@pytest.mark.requirement("dataset-refused")
async def test_a_file_that_is_not_there_is_refused(place: Place) -> None:
    async with place.actor() as actor:
        with pytest.raises(NotFound) as found:
            await actor.create(place.request(url=f"file://{place.root}/missing.jsonl"))
        assert str(place.folder) not in found.value.message
