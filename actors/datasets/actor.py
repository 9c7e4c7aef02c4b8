"""The Datasets API: what is registered was read once, row by row, and is known by the digest of its content."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from threading import Event

import anyio
import anyio.to_thread
from msgspec.structs import replace

from ...bus.bus import Bus
from ...bus.durable import KeyValue
from ...schemas import (
    Conflict,
    CreateDatasetRequest,
    Dataset,
    DatasetInfo,
    Datasets,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Overloaded,
    TooLarge,
    decode,
    encode,
)
from .columns import require_columns, require_rows
from .content import Content, ContentStore

BUCKET = "datasets"
MAX_ID = 160
AT_ONCE = 2
"""How many contents are read at once; more wait their turn."""
CHECK_SECONDS = 300.0
"""How long the rows of one content may be checked."""
MAX_WAITING = 32
"""How many may wait; further ones are told to come back later."""
MAX_BYTES = 768 << 10
"""The largest dataset as it is kept, with what stands in a ``data:`` address: it must fit a message of the bus."""


class Abandoned(Exception):  # noqa: N818 - it says what happened
    """Nobody waits for this check any more."""


class DatasetsActor(Datasets):
    """Keeps datasets. Opened by `open_datasets`.

    Args:
        entries: where they are kept.
        content: from where their contents come.
        seconds: how long the rows of one may be checked.
    """

    service_name = "datasets"

    def __init__(self, entries: KeyValue, content: ContentStore, seconds: float) -> None:
        self._entries = entries
        self._content = content
        self._seconds = seconds
        self._reading = anyio.CapacityLimiter(AT_ONCE)

    async def create(self, request: CreateDatasetRequest) -> None:
        """Register a dataset; see `Datasets.create`. The same one again, with the same content, changes nothing."""
        if not 1 <= len(request.uuid) <= MAX_ID:
            raise InvalidRequest(f"uuid: an id has 1 to {MAX_ID} characters")
        size = len(encode(request))
        if size > MAX_BYTES:
            raise TooLarge(
                f"the dataset itself has {size} bytes, the limit is {MAX_BYTES}: put its content into a file or on a server"
            )
        known = await self._entries.get(request.uuid)
        if known is not None:
            _require_same(decode(known.value, DatasetInfo), request.dataset)
        info = await self._examined(request)
        try:
            await self._entries.create(request.uuid, encode(info))
        except Conflict:
            _require_same(await self._info(request.uuid), info.dataset)

    async def _examined(self, request: CreateDatasetRequest) -> DatasetInfo:
        dataset = request.dataset
        require_columns(dataset.columns)
        await anyio.to_thread.run_sync(self._content.check, dataset.content_url)
        if self._reading.statistics().tasks_waiting >= MAX_WAITING:
            raise Overloaded("too many datasets are waiting to be read")
        async with self._reading, self._content.reading(dataset.content_url) as content:
            if dataset.fingerprint not in (None, content.fingerprint):
                raise Conflict("the content is not what its fingerprint says: it has changed")
            rows = await _checked(content, dataset, self._seconds)
        return DatasetInfo(
            uuid=request.uuid,
            dataset=replace(dataset, fingerprint=content.fingerprint),
            rows=rows,
            bytes=content.bytes,
            created_at=datetime.now(UTC),
        )

    async def get(self, dataset_id: str) -> Dataset:
        """Return a dataset; see `Datasets.get`."""
        return (await self._info(dataset_id)).dataset

    async def delete(self, dataset_id: str) -> None:
        """Forget a dataset; see `Datasets.delete`."""
        await self._info(dataset_id)
        await self._entries.delete(dataset_id)

    async def list(self) -> AsyncIterator[DatasetInfo]:
        """List the datasets; see `Datasets.list`."""
        for uuid in await self._entries.keys():
            entry = await self._entries.get(uuid)
            if entry is not None:  # It may have been deleted meanwhile.
                yield decode(entry.value, DatasetInfo)

    async def _info(self, uuid: str) -> DatasetInfo:
        entry = await self._entries.get(uuid)
        if entry is None:
            raise NotFound(f"there is no dataset {uuid!r}")
        return decode(entry.value, DatasetInfo)


async def open_datasets(
    bus: Bus, content: ContentStore, seconds: float = CHECK_SECONDS
) -> DatasetsActor:
    """Return the actor that keeps datasets."""
    return DatasetsActor(await bus.storage.key_value(BUCKET), content, seconds)


async def _checked(content: Content, dataset: Dataset, seconds: float) -> int:
    """Return how many rows a content has, all of them as declared; a cancelled check ends within some rows."""
    abandoned = Event()

    def tick() -> None:
        if abandoned.is_set():
            raise Abandoned

    def check() -> int:
        return require_rows(content.path, content.format, dataset.columns, tick)

    try:
        with anyio.fail_after(seconds):
            return await anyio.to_thread.run_sync(check, abandon_on_cancel=True)
    except TimeoutError as error:
        raise DeadlineExceeded(f"the rows were not checked within {seconds:g} s") from error
    finally:
        abandoned.set()


def _require_same(known: DatasetInfo, wanted: Dataset) -> None:
    """Refuse another dataset of an id that is taken; what has no fingerprint yet may be the same.

    Raises:
        Conflict: it is another one.
    """
    fingerprint = known.dataset.fingerprint
    if replace(wanted, fingerprint=fingerprint) != known.dataset:
        raise Conflict(f"there is a dataset {known.uuid!r} already, with another description")
    if wanted.fingerprint not in (None, fingerprint):
        raise Conflict(f"there is a dataset {known.uuid!r} already; its content has changed since")
