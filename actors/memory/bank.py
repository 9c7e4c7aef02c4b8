"""One bank as an actor keeps it: tables and index, changed by entries of the log, asked by queries.

Methods block and run in threads; `Bank.lock` says who may: many readers, or one writer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...schemas import (
    InvalidRequest,
    MemoryBankMatch,
    MemoryBankQuery,
    MemoryBankQueryResult,
    MemoryBankStats,
    NotFound,
)
from ...schemas.filters import Filter
from ...schemas.memory import MAX_QUERIES, SearchMode
from .index import BankIndex, IndexedDocument
from .locks import ReadWriteLock
from .log import BankSettings, DocumentStored
from .ranking import any_word, fused
from .shared import SharedWork
from .store import Chunk, Store

FUSED_FACTOR, FUSED_LEAST = 4, 50
"""How deep the rankings go that are fused, as a multiple of what is wanted, and at least."""

Hits = list[tuple[int, float]]
"""Labels of chunks and scores, best first."""


@dataclass(frozen=True, slots=True)
class DocumentChange:
    """What an entry of the log does to a document: what is stored from here on, or None for nothing."""

    uuid: str
    stored: DocumentStored | None
    object: str | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """A query that has its vector, if its mode needs one."""

    query: MemoryBankQuery
    mode: SearchMode
    vector: NDArray[np.float32] | None


def mode_of(query: MemoryBankQuery) -> SearchMode:
    """Return how a query searches.

    Raises:
        InvalidRequest: it lacks what its mode needs, or has what its mode would ignore.
    """
    implied: SearchMode = "metadata"
    if query.text is not None:
        implied = "hybrid"
    elif query.vector is not None:
        implied = "vector"
    mode = query.mode or implied
    if mode in ("text", "hybrid") and query.text is None:
        raise InvalidRequest(f"a query of mode {mode} needs a text")
    if mode == "vector" and query.text is None and query.vector is None:
        raise InvalidRequest("a query of mode vector needs a text or a vector")
    if mode == "vector" and query.text is not None and query.vector is not None:
        raise InvalidRequest("a query of mode vector takes a text or a vector, not both")
    if (mode == "text" and query.vector is not None) or (
        mode == "metadata" and implied != "metadata"
    ):
        raise InvalidRequest(
            f"a query of mode {mode} takes no {'vector' if mode == 'text' else implied}"
        )
    return mode


@dataclass(slots=True)
class Bank:
    """A bank.

    Attributes:
        uuid: what clients call it.
        name: what it is for people.
        settings: how its documents become vectors.
        store: its tables.
        index: its vectors and metadata, in memory.
        lock: who may read or write.
        queries: those that wait are answered together, which costs much less: one hop to a thread, one look at the tables.
        changes: how many entries were applied since its last snapshot.
        dropped: whether it is gone; whoever waited for the lock looks.
    """

    uuid: str
    name: str
    settings: BankSettings
    store: Store
    index: BankIndex
    lock: ReadWriteLock = field(default_factory=ReadWriteLock)
    queries: SharedWork[Search, MemoryBankQueryResult] = field(
        default_factory=lambda: SharedWork(MAX_QUERIES)
    )
    changes: int = 1
    dropped: bool = False

    @classmethod
    def empty(cls, uuid: str, name: str, settings: BankSettings, path: Path) -> Bank:
        """Return a new bank with tables in a file that does not exist yet."""
        return cls(
            uuid, name, settings, Store(path, settings.dimension), BankIndex(settings.dimension)
        )

    def load(self, graph: Path | None) -> None:
        """Fill the index from the tables (a write)."""
        for rows in self.store.rows():
            self.index.add(rows)
        if graph is not None:
            self.index.load(graph)

    def apply(self, changes: Sequence[DocumentChange]) -> list[str]:
        """Apply changes in one transaction (a write), and return the objects that nothing refers to any more."""
        removed: list[int] = []
        added: dict[int, IndexedDocument] = {}
        unused = []
        with self.store.writing():
            for change in changes:
                old = self.store.remove(change.uuid)
                if old is not None:
                    if added.pop(old.label, None) is None:
                        removed.append(old.label)
                    if old.object is not None and old.object != change.object:
                        unused.append(old.object)
                if change.stored is not None:
                    row = self.store.add(change.stored, change.object)
                    added[row.label] = row
        self.index.remove(removed)
        self.index.add(list(added.values()))
        self.changes += len(changes)
        return unused

    def check(self) -> None:
        """Raise `NotFound` where the bank was dropped while one waited for its lock."""
        if self.dropped:
            raise unknown_bank(self.uuid)

    def answer(self, searches: Sequence[Search]) -> list[MemoryBankQueryResult]:
        """Answer queries (a read)."""
        self.check()
        by_vector = self._by_vector(searches)
        hits = [
            self._hits(search, found) for search, found in zip(searches, by_vector, strict=True)
        ]
        chunks = self.store.chunks({label for row in hits for label, _ in row})
        return [
            self._result(search.query, row, chunks)
            for search, row in zip(searches, hits, strict=True)
        ]

    def _by_vector(self, searches: Sequence[Search]) -> list[Hits]:
        """Return what is near each query's vector; queries alike but for it are looked up together."""
        found: list[Hits] = [[] for _ in searches]
        alike: dict[tuple[int, Filter | None], list[int]] = {}
        for number, search in enumerate(searches):
            if search.vector is not None:
                alike.setdefault((_depth(search), search.query.filter), []).append(number)
        for (depth, wanted), numbers in alike.items():
            vectors = np.array([searches[number].vector for number in numbers], np.float32)
            labels, scores = self.index.search(vectors, depth, wanted)
            for number, row, row_scores in zip(
                numbers, labels.tolist(), scores.tolist(), strict=True
            ):
                found[number] = [
                    (label, score)
                    for label, score in zip(row, row_scores, strict=True)
                    if label >= 0
                ]
        return found

    def _hits(self, search: Search, by_vector: Hits) -> Hits:
        query = search.query
        if search.mode == "metadata":
            documents = self.index.matching(query.filter)[: query.k].tolist()
            hits = [(label, 1.0) for label in self.store.chunks_of(documents)]
        elif search.mode == "vector":
            hits = by_vector
        elif search.mode == "text":
            hits = self._by_words(query.text or "", query.k, query.filter)
        else:
            by_words = self._by_words(query.text or "", _depth(search), query.filter)
            hits = fused([[label for label, _ in by_vector], [label for label, _ in by_words]])
        least = query.min_score
        return [hit for hit in hits[: query.k] if least is None or hit[1] >= least]

    def _by_words(self, text: str, k: int, wanted: Filter | None) -> Hits:
        expression = any_word(text)
        if not expression:
            return []
        limit = k
        while True:
            hits = self.store.words(expression, limit)
            if wanted is None:
                return hits
            allowed = self.index.allowed(np.array([label for label, _ in hits], np.int64), wanted)
            fitting = [hit for hit, fits in zip(hits, allowed.tolist(), strict=True) if fits]
            if len(fitting) >= k or len(hits) < limit:
                return fitting[:k]
            limit *= 8

    def _result(
        self, query: MemoryBankQuery, hits: Hits, chunks: Mapping[int, Chunk]
    ) -> MemoryBankQueryResult:
        matches = [
            MemoryBankMatch(chunks[label].uuid, chunks[label].text, score) for label, score in hits
        ]
        if not query.include_documents:
            return MemoryBankQueryResult(matches)
        uuids = list(dict.fromkeys(match.document_uuid for match in matches))
        documents = self.store.documents(uuids)
        return MemoryBankQueryResult(matches, [documents[uuid] for uuid in uuids])

    def stats(self, sequence: int) -> MemoryBankStats:
        """Tell what is in it (a read)."""
        self.check()
        found = self.index.stats()
        return MemoryBankStats(
            uuid=self.uuid,
            name=self.name,
            documents=found.documents,
            chunks=found.chunks,
            embedding_model=self.settings.embedding_model,
            dimension=self.settings.dimension,
            chunk_size=self.settings.chunk_size,
            chunk_overlap=self.settings.chunk_overlap,
            sequence=sequence,
            memory_bytes=found.bytes,
            indexed=found.indexed,
        )


def unknown_bank(uuid: str) -> NotFound:
    """Return the error for a bank that is not there."""
    return NotFound(f"there is no memory bank {uuid!r}")


def _depth(search: Search) -> int:
    k = search.query.k
    return k if search.mode != "hybrid" else max(FUSED_LEAST, FUSED_FACTOR * k)
