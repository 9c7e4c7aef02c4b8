"""The MemoryBanks API: banks of documents, the documents in them, and what finds them (extension)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, Protocol

from msgspec import Meta

from .filters import Filter
from .webmethod import webmethod
from .wire import Reply, Wire

MAX_DOCUMENTS = 500
MAX_QUERIES = 256
MAX_MATCHES = 1000

Uuid = Annotated[str, Meta(min_length=1, max_length=160)]
"""What a client calls its bank or document: any text."""
QueryText = Annotated[str, Meta(min_length=1, max_length=10_000)]
SearchMode = Literal["vector", "text", "hybrid", "metadata"]


class MemoryBank(Wire, frozen=True):
    """A bank of documents."""

    uuid: str
    name: str


class MemoryBankDocument(Wire, frozen=True):
    """A document; its content is base64 in JSON."""

    uuid: Uuid
    content: bytes
    metadata: dict[str, Any]
    mime_type: str


class MemoryBankQuery(Wire, frozen=True):
    """What to look for in a bank."""

    text: Annotated[QueryText | None, Meta(description="Words, or a question.")] = None
    vector: Annotated[
        list[float] | None,
        Meta(description="An embedding of the bank's model, in place of one of the text."),
    ] = None
    k: Annotated[int, Meta(ge=1, le=MAX_MATCHES, description="How many chunks at most.")] = 10
    filter: Annotated[
        Filter | None, Meta(description="Only documents whose metadata fit are looked at.")
    ] = None
    mode: Annotated[
        SearchMode | None,
        Meta(
            description="`vector`: by meaning (cosine similarity); `text`: by words (BM25); `hybrid`: both, fused by "
            "reciprocal rank; `metadata`: all that fit the filter, in the order of their insertion. Without one: `hybrid` "
            "for a text, `vector` for a vector alone, `metadata` for neither."
        ),
    ] = None
    min_score: Annotated[
        float | None, Meta(description="Leave out what scores less, on the scale of the mode.")
    ] = None
    include_documents: Annotated[
        bool, Meta(description="Whether whole documents come with the chunks.")
    ] = True


class MemoryBankMatch(Reply, frozen=True):
    """A chunk of a document that was found."""

    document_uuid: str
    chunk: Annotated[str, Meta(description="The text of the chunk.")]
    score: Annotated[float, Meta(description="Higher is better; 1 in mode `metadata`.")]


class MemoryBankQueryResult(Reply, frozen=True):
    """What a query found: the chunks, best first, and their documents in the same order, each once."""

    matches: list[MemoryBankMatch]
    documents: list[MemoryBankDocument] = []


class MemoryBankStats(Reply, frozen=True):
    """What is in a bank, and how it is kept by the actor that answers."""

    uuid: str
    name: str
    documents: int
    chunks: int
    embedding_model: str
    dimension: Annotated[int, Meta(description="The length of the model's vectors.")]
    chunk_size: Annotated[int, Meta(description="The most tokens in a chunk.")]
    chunk_overlap: Annotated[int, Meta(description="Tokens that neighbouring chunks share.")]
    sequence: Annotated[int, Meta(description="The entry of the log that the answer stands at.")]
    memory_bytes: Annotated[int, Meta(description="What the index takes of the actor's memory.")]
    indexed: Annotated[
        int, Meta(description="Chunks in the graph; the others are compared one by one.")
    ]


class MemoryBanks(Protocol):
    """Keep banks of documents."""

    @webmethod(route="/memory_banks/create", operation_id="create_memory_bank", api="MemoryBanks")
    async def create(  # noqa: PLR0917 - the draft's parameters, and three of ours
        self,
        bank_uuid: str,
        bank_name: str,
        documents: list[MemoryBankDocument],
        embedding_model: str | None = None,
        chunk_size: int | None = None,
        chunk_overlap: int | None = None,
    ) -> None:
        """Create a bank with its first documents; the bank and all of them, or nothing."""
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

    @webmethod(route="/memory_bank/query", api="MemoryBanks")
    def query(
        self, bank_uuid: str, queries: list[MemoryBankQuery]
    ) -> AsyncIterator[MemoryBankQueryResult]:
        """Find chunks of documents; returns a result for each query, in their order."""
        ...

    @webmethod(route="/memory_bank/documents", method="GET", api="MemoryBanks")
    def documents(
        self, bank_uuid: str, after: str = "", limit: int = 1000
    ) -> AsyncIterator[MemoryBankDocument]:
        """Return the documents that come after an id, in the order of ids; for exports, page by page."""
        ...

    @webmethod(route="/memory_bank/stats", method="GET", api="MemoryBanks")
    async def stats(self, bank_uuid: str) -> MemoryBankStats:
        """Tell what is in a bank."""
        ...
