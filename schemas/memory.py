"""The MemoryBanks API: banks of documents, and the documents in them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from .webmethod import webmethod
from .wire import Wire


class MemoryBank(Wire, frozen=True):
    """A bank of documents."""

    uuid: str
    name: str


class MemoryBankDocument(Wire, frozen=True):
    """A document; its content is base64 in JSON."""

    uuid: str
    content: bytes
    metadata: dict[str, Any]
    mime_type: str


class MemoryBanks(Protocol):
    """Keep banks of documents."""

    @webmethod(route="/memory_banks/create", operation_id="create_memory_bank", api="MemoryBanks")
    async def create(
        self, bank_uuid: str, bank_name: str, documents: list[MemoryBankDocument]
    ) -> None:
        """Create a bank with its first documents."""
        ...

    @webmethod(
        route="/memory_banks/get",
        method="GET",
        operation_id="get_memory_banks",
        api="MemoryBanks",
    )
    def get(self) -> AsyncIterator[MemoryBank]:
        """List all banks."""
        ...

    @webmethod(
        route="/memory_banks/drop",
        method="DELETE",
        operation_id="remove_memory_bank",
        api="MemoryBanks",
    )
    async def drop(self, bank_uuid: str) -> None:
        """Remove a bank and all that is in it."""
        ...


class MemoryBankDocuments(Protocol):
    """Keep the documents of one bank: the draft's MemoryBanks API, where names begin with ``memory_bank``."""

    @webmethod(
        route="/memory_bank/insert",
        operation_id="post_insert_memory_documents",
        api="MemoryBanks",
    )
    async def insert(self, bank_uuid: str, documents: list[MemoryBankDocument]) -> None:
        """Add documents; all or none."""
        ...

    @webmethod(
        route="/memory_bank/update",
        operation_id="post_update_memory_documents",
        api="MemoryBanks",
    )
    async def update(self, bank_uuid: str, documents: list[MemoryBankDocument]) -> None:
        """Replace documents; all or none."""
        ...

    @webmethod(
        route="/memory_bank/get", operation_id="post_get_memory_documents", api="MemoryBanks"
    )
    def get(self, bank_uuid: str, document_uuids: list[str]) -> AsyncIterator[MemoryBankDocument]:
        """Return documents, in the order of their ids."""
        ...

    @webmethod(
        route="/memory_bank/delete", operation_id="remove_memory_documents", api="MemoryBanks"
    )
    async def delete(self, bank_uuid: str, document_uuids: list[str]) -> None:
        """Remove documents; all or none."""
        ...
