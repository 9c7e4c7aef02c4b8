"""The memory actors: the MemoryBanks API, answered from a replica and written through its log."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...bus.bus import Bus
from ...schemas import (
    Conflict,
    InvalidRequest,
    MemoryBank,
    MemoryBankDocument,
    MemoryBankDocuments,
    MemoryBankQuery,
    MemoryBankQueryResult,
    MemoryBanks,
    MemoryBankStats,
    NotFound,
)
from ...schemas.memory import MAX_DOCUMENTS, MAX_QUERIES
from ..embedding.embedder import Embedder
from ..events import ensure_events
from .bank import Bank, Search, mode_of
from .care import Care
from .intake import Intake
from .log import (
    BankCreated,
    BankDropped,
    BankSettings,
    Change,
    DocumentDeleted,
    DocumentStored,
    bank_subject,
    document_subject,
)
from .opening import open_replica
from .replica import Replica
from .writer import Writer

NAMED = 10
"""How many ids an error names."""
MAX_PAGE = 1000


class MemoryBanksActor(MemoryBanks):
    """Keeps memory banks."""

    service_name = "memory-banks"

    def __init__(self, replica: Replica, writer: Writer, intake: Intake) -> None:
        self._replica = replica
        self._writer = writer
        self._intake = intake

    async def create(  # noqa: PLR0917 - the draft's parameters, and three of ours
        self,
        bank_uuid: str,
        bank_name: str,
        documents: list[MemoryBankDocument],
        embedding_model: str | None = None,
        chunk_size: int | None = None,
        chunk_overlap: int | None = None,
    ) -> None:
        """Create a bank; see `MemoryBanks.create`."""
        check_ids([bank_uuid], "bank")
        check_ids([document.uuid for document in documents], "document", least=0)
        settings = self._intake.settings(embedding_model, chunk_size, chunk_overlap)

        async def check() -> None:
            if bank_uuid in self._replica.banks:
                raise Conflict(f"there is a memory bank {bank_uuid!r} already")

        await self._replica.current()
        await check()
        stored = await self._intake.stored(documents, settings)
        bank: Change = BankCreated(request="", name=bank_name, settings=settings)
        changes = [(bank_subject(bank_uuid), bank), *_changes(bank_uuid, stored)]
        await self._writer.write(changes, check)
        if documents:
            uuids = [document.uuid for document in documents]
            await self._writer.tell(bank_uuid, "inserted", uuids)

    async def get(self) -> AsyncIterator[MemoryBank]:
        """List all banks; see `MemoryBanks.get`."""
        await self._replica.current()
        for bank in sorted(self._replica.banks.values(), key=lambda bank: bank.uuid):
            yield MemoryBank(bank.uuid, bank.name)

    async def drop(self, bank_uuid: str) -> None:
        """Remove a bank; see `MemoryBanks.drop`."""

        async def check() -> None:
            self._replica.bank(bank_uuid)

        await self._replica.current()
        await check()
        await self._writer.write([(bank_subject(bank_uuid), BankDropped(request=""))], check)


class MemoryBankDocumentsActor(MemoryBankDocuments):
    """Keeps the documents of memory banks, and finds them."""

    service_name = "memory-bank-documents"

    def __init__(self, replica: Replica, writer: Writer, intake: Intake) -> None:
        self._replica = replica
        self._writer = writer
        self._intake = intake

    async def insert(self, bank_uuid: str, documents: list[MemoryBankDocument]) -> None:
        """Add documents; see `MemoryBankDocuments.insert`."""
        await self._store(bank_uuid, documents, new=True)

    async def update(self, bank_uuid: str, documents: list[MemoryBankDocument]) -> None:
        """Replace documents; see `MemoryBankDocuments.update`."""
        await self._store(bank_uuid, documents, new=False)

    async def _store(
        self, bank_uuid: str, documents: list[MemoryBankDocument], *, new: bool
    ) -> None:
        uuids = [document.uuid for document in documents]
        check_ids(uuids, "document")
        bank = await self._bank(bank_uuid)

        async def check() -> None:
            await self._check_known(bank, uuids, new=new)

        await check()
        stored = await self._intake.stored(documents, bank.settings)
        await self._writer.write(_changes(bank_uuid, stored), check)
        await self._writer.tell(bank_uuid, "inserted" if new else "updated", uuids)

    async def _check_known(self, bank: Bank, uuids: Sequence[str], *, new: bool = False) -> None:
        """Refuse documents that are there, where they should be new, or that are not, where they should be there."""
        known = await self._replica.read(bank, bank.store.known, uuids)
        if new and known:
            raise Conflict(
                f"the memory bank {bank.uuid!r} already has documents: {_named(known)}",
                details={"documents": sorted(known)},
            )
        if not new and len(known) < len(uuids):
            raise _unknown_documents(bank, [uuid for uuid in uuids if uuid not in known])

    async def get(
        self, bank_uuid: str, document_uuids: list[str]
    ) -> AsyncIterator[MemoryBankDocument]:
        """Return documents; see `MemoryBankDocuments.get`."""
        check_ids(document_uuids, "document")
        bank = await self._bank(bank_uuid)
        found = await self._replica.read(bank, bank.store.documents, document_uuids)
        if len(found) < len(document_uuids):
            raise _unknown_documents(bank, [uuid for uuid in document_uuids if uuid not in found])
        for uuid in document_uuids:
            yield found[uuid]

    async def delete(self, bank_uuid: str, document_uuids: list[str]) -> None:
        """Remove documents; see `MemoryBankDocuments.delete`."""
        check_ids(document_uuids, "document")
        bank = await self._bank(bank_uuid)

        async def check() -> None:
            await self._check_known(bank, document_uuids)

        await check()
        changes: list[tuple[str, Change]] = [
            (document_subject(bank_uuid, uuid), DocumentDeleted(request=""))
            for uuid in document_uuids
        ]
        await self._writer.write(changes, check)
        await self._writer.tell(bank_uuid, "deleted", document_uuids)

    async def query(
        self, bank_uuid: str, queries: list[MemoryBankQuery]
    ) -> AsyncIterator[MemoryBankQueryResult]:
        """Find chunks; see `MemoryBankDocuments.query`."""
        if not 1 <= len(queries) <= MAX_QUERIES:
            raise InvalidRequest(f"a call has 1 to {MAX_QUERIES} queries, not {len(queries)}")
        bank = await self._bank(bank_uuid)
        for result in await self.search(bank, queries):
            yield result

    async def search(
        self, bank: Bank, queries: Sequence[MemoryBankQuery]
    ) -> list[MemoryBankQueryResult]:
        """Answer queries from what is applied now."""
        searches = await self._prepared(bank, queries)
        return await bank.queries.answers(
            searches, lambda all_searches: self._replica.read(bank, bank.answer, all_searches)
        )

    async def _prepared(self, bank: Bank, queries: Sequence[MemoryBankQuery]) -> list[Search]:
        modes = [mode_of(query) for query in queries]
        texts = [
            query.text
            for query, mode in zip(queries, modes, strict=True)
            if query.text is not None and query.vector is None and mode in ("vector", "hybrid")
        ]
        embedded: list[NDArray[np.float32]] = []
        if texts:
            settings = bank.settings
            embedder = self._intake.embedder(settings.embedding_model, settings.dimension)
            embedded = list(await embedder.embed(texts))
        rows = iter(embedded)
        searches = []
        for query, mode in zip(queries, modes, strict=True):
            vector = None
            if query.vector is not None:
                vector = _checked_vector(query.vector, bank.settings)
            elif mode in ("vector", "hybrid"):
                vector = next(rows)
            searches.append(Search(query, mode, vector))
        return searches

    async def documents(
        self, bank_uuid: str, after: str = "", limit: int = MAX_PAGE
    ) -> AsyncIterator[MemoryBankDocument]:
        """Return a page of documents; see `MemoryBankDocuments.documents`."""
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidRequest(f"limit is from 1 to {MAX_PAGE}")
        bank = await self._bank(bank_uuid)
        for document in await self._replica.read(bank, bank.store.page, after, limit):
            yield document

    async def stats(self, bank_uuid: str) -> MemoryBankStats:
        """Tell what is in a bank; see `MemoryBankDocuments.stats`."""
        bank = await self._bank(bank_uuid)
        return await self._replica.read(bank, bank.stats, self._replica.applied)

    async def _bank(self, uuid: str) -> Bank:
        """Return a bank as it is now or later."""
        await self._replica.current()
        return self._replica.bank(uuid)


def check_ids(uuids: Sequence[str], what: str, *, least: int = 1) -> None:
    """Refuse a list of ids that no request may have.

    Raises:
        InvalidRequest: there are too few or too many, or one is empty or there twice.
    """
    if not least <= len(uuids) <= MAX_DOCUMENTS:
        raise InvalidRequest(
            f"a call has {least} to {MAX_DOCUMENTS} {what}s, not {len(uuids)}: send them in several"
        )
    if "" in uuids:
        raise InvalidRequest(f"a {what} has an empty id")
    if len(set(uuids)) < len(uuids):
        twice = {uuid for uuid in uuids if uuids.count(uuid) > 1}
        raise InvalidRequest(f"{what}s are named twice: {_named(twice)}")


def _changes(bank: str, stored: Sequence[DocumentStored]) -> list[tuple[str, Change]]:
    return [(document_subject(bank, one.document.uuid), one) for one in stored]


def _checked_vector(values: list[float], settings: BankSettings) -> NDArray[np.float32]:
    vector = np.array(values, np.float32)
    if vector.shape != (settings.dimension,):
        raise InvalidRequest(
            f"a vector of this bank has {settings.dimension} numbers, not {len(values)}"
        )
    length = float(np.linalg.norm(vector))
    if not np.isfinite(length) or length == 0.0:
        raise InvalidRequest("a vector has a direction: it is not zero, and its numbers are finite")
    return vector / np.float32(length)


def _named(uuids: Iterable[str]) -> str:
    found = sorted(uuids)
    return ", ".join(repr(uuid) for uuid in found[:NAMED]) + (", ..." if len(found) > NAMED else "")


def _unknown_documents(bank: Bank, uuids: Sequence[str]) -> NotFound:
    return NotFound(
        f"the memory bank {bank.uuid!r} has no documents: {_named(uuids)}",
        details={"documents": sorted(uuids)},
    )


@dataclass(frozen=True, slots=True)
class MemoryActors:
    """The actors of one replica.

    Attributes:
        banks: keeps the banks.
        documents: keeps their documents.
        replica: what both answer from.
        care: makes its snapshots.
    """

    banks: MemoryBanksActor
    documents: MemoryBankDocumentsActor
    replica: Replica
    care: Care


@asynccontextmanager
async def memory_actors(
    bus: Bus, data_dir: Path, embedders: Mapping[str, Embedder], default: str
) -> AsyncIterator[MemoryActors]:
    """Open the actors of one replica, which has read the log.

    Args:
        bus: the bus.
        data_dir: where replicas of this machine keep their files.
        embedders: embedding models by name, open.
        default: the model of banks that name none.
    """
    await ensure_events(bus)
    async with open_replica(bus, data_dir) as (replica, care):
        writer = Writer(bus, replica, replica.objects)
        intake = Intake(embedders, default)
        yield MemoryActors(
            MemoryBanksActor(replica, writer, intake),
            MemoryBankDocumentsActor(replica, writer, intake),
            replica,
            care,
        )
