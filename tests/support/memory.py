"""Memory actors in the test's own process, and documents for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayllu.actors.memory.actors import (
    MemoryBankDocumentsActor,
    MemoryBanksActor,
    memory_actors,
)
from ayllu.actors.memory.care import Care
from ayllu.actors.memory.replica import Replica
from ayllu.bus.bus import Bus
from ayllu.schemas import MemoryBankDocument, MemoryBankQuery, MemoryBankQueryResult

from .embedders import HashEmbedder


@dataclass(frozen=True, slots=True)
class Memory:
    """One replica and its actors.

    Attributes:
        banks: the actor of the banks.
        documents: the actor of their documents.
        replica: what stands behind both.
        care: makes its snapshots.
    """

    banks: MemoryBanksActor
    documents: MemoryBankDocumentsActor
    replica: Replica
    care: Care

    async def uuids(self, bank: str) -> dict[str, bytes]:
        """Return all documents of a bank: content by uuid."""
        return {one.uuid: one.content async for one in self.documents.documents(bank)}

    async def query(self, bank: str, **fields: Any) -> MemoryBankQueryResult:
        """Ask one query."""
        found = [one async for one in self.documents.query(bank, [MemoryBankQuery(**fields)])]
        assert len(found) == 1
        return found[0]

    async def list_banks(self) -> list[str]:
        """Return the uuids of all banks."""
        return [bank.uuid async for bank in self.banks.get()]


@asynccontextmanager
async def running_memory(bus: Bus, folder: Path) -> AsyncIterator[Memory]:
    """Run a replica with a double of an embedding model."""
    async with (
        HashEmbedder("hash", dimension=32) as embedder,
        memory_actors(bus, folder, {"hash": embedder}, "hash") as actors,
    ):
        yield Memory(actors.banks, actors.documents, actors.replica, actors.care)


def document(
    uuid: str, text: str = "", mime_type: str = "text/plain", **metadata: Any
) -> MemoryBankDocument:
    """Return a document."""
    return MemoryBankDocument(uuid, (text or f"text of {uuid}").encode(), metadata, mime_type)


def documents(uuids: Iterable[str]) -> list[MemoryBankDocument]:
    """Return a document for each uuid."""
    return [document(uuid) for uuid in uuids]
