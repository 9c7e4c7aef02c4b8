"""The index of a bank, in memory: which documents fit a filter, and which chunks are near a vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...schemas.filters import Filter
from .arrays import Buffer
from .columns import Columns, Mask
from .graph import Labels, Scores
from .vectors import Rows, Vectors

COMPACT_DEAD, COMPACT_LEAST = 0.3, 1024
"""Dead rows are dropped when they are so great a part, and so many."""
FILTERS_KEPT = 16


@dataclass(frozen=True, slots=True)
class IndexedDocument:
    """A document as the index needs it.

    Attributes:
        label: its number, greater than those of all documents before.
        metadata: what filters look at.
        chunk_labels: the numbers of its chunks, ascending, greater than those of all chunks before.
        vectors: their vectors, normalised, one row each.
    """

    label: int
    metadata: dict[str, Any]
    chunk_labels: Labels
    vectors: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class IndexStats:
    """How large an index is: documents and chunks that can be found, bytes, and chunks that the graph finds."""

    documents: int
    chunks: int
    bytes: int
    indexed: int


class BankIndex:
    """The index of one bank.

    Reads, which may run at once in threads: `search`, `matching`, `allowed`, `stats`, `save`. Writes, which may run only
    alone: `add`, `remove`, `maintain`, `load`.

    Args:
        dimension: the length of the vectors.
    """

    def __init__(self, dimension: int) -> None:
        self._vectors = Vectors(dimension)
        self._columns = Columns()
        self._documents = Buffer(np.int64)  # labels; a document's number is its place
        self._alive = Buffer(np.bool_)
        self._first_rows = Buffer(np.int64)  # of each document, and one past all rows at the end
        self._first_rows.extend([0])
        self._owners = Buffer(np.int32)  # the number of the document of each row
        self._dead = 0
        self._dimension = dimension
        self._forget_filters()

    def _forget_filters(self) -> None:
        # Filters are compared as values; what they found is valid until the next change.
        self._fitting = lru_cache(FILTERS_KEPT)(self._find_fitting)

    def __len__(self) -> int:
        """How many documents there are."""
        return len(self._documents) - self._dead

    def add(self, documents: Sequence[IndexedDocument]) -> None:
        """Append documents."""
        if not documents:
            return
        chunks = [len(document.chunk_labels) for document in documents]
        number = len(self._documents)
        self._vectors.add(
            np.concatenate([document.chunk_labels for document in documents]),
            np.concatenate([document.vectors for document in documents]),
        )
        self._columns.add([document.metadata for document in documents])
        self._documents.extend([document.label for document in documents])
        self._alive.extend(np.ones(len(documents), np.bool_))
        self._first_rows.extend(int(self._first_rows.values[-1]) + np.cumsum(chunks))
        self._owners.extend(np.repeat(np.arange(number, number + len(documents)), chunks))
        self._forget_filters()

    def remove(self, labels: Sequence[int]) -> None:
        """Remove documents that are there."""
        if not labels:
            return
        numbers = np.searchsorted(self._documents.values, np.array(sorted(labels), np.int64))
        self._alive.values[numbers] = False
        self._dead += len(numbers)
        first = self._first_rows.values
        self._vectors.remove(
            np.concatenate([np.arange(first[n], first[n + 1]) for n in numbers.tolist()])
        )
        self._forget_filters()

    def search(
        self, vectors: NDArray[np.float32], k: int, wanted: Filter | None
    ) -> tuple[Labels, Scores]:
        """Return the labels of the nearest chunks and their cosine similarities, best first, one row for each vector.

        Args:
            vectors: normalised, one row each.
            k: how many chunks at most; -1 stands where a row has fewer than others.
            wanted: only chunks of documents that pass it are found.
        """
        rows = None if wanted is None else self._fitting(wanted)[1]
        return self._vectors.search(np.ascontiguousarray(vectors, np.float32), k, rows)

    def matching(self, wanted: Filter | None) -> Labels:
        """Return the labels of the documents that pass a filter, in the order of their coming."""
        mask = self._alive.values if wanted is None else self._fitting(wanted)[0]
        return self._documents.values[mask]

    def allowed(self, chunk_labels: Labels, wanted: Filter) -> Mask:
        """Return which chunks are of documents that pass a filter."""
        owners = self._owners.values[self._vectors.rows(chunk_labels)]
        found: Mask = self._fitting(wanted)[0][owners]
        return found

    def _find_fitting(self, wanted: Filter) -> tuple[Mask, Rows]:
        documents = self._columns.mask(wanted) & self._alive.values
        return documents, np.flatnonzero(documents[self._owners.values])

    def stats(self) -> IndexStats:
        """Tell how large it is."""
        own = (self._documents, self._alive, self._first_rows, self._owners)
        size = self._vectors.nbytes + self._columns.nbytes + sum(one.nbytes for one in own)
        return IndexStats(len(self), len(self._vectors), size, self._vectors.indexed)

    def maintain(self, seconds: float) -> bool:
        """Move vectors into the graph, and drop what is dead, for about so long; return whether there is more to do."""
        if self._vectors.dead > max(COMPACT_LEAST, COMPACT_DEAD * len(self._vectors)):
            self._compact()
        return self._vectors.maintain(seconds)

    def _compact(self) -> None:
        alive = self._alive.values.copy()
        counts = np.diff(self._first_rows.values)[alive]
        self._vectors.compact()
        self._columns.compact(alive)
        self._documents = Buffer(np.int64, self._documents.values[alive])
        self._alive = Buffer(np.bool_, np.ones(len(self._documents), np.bool_))
        self._first_rows = Buffer(np.int64, np.concatenate([[0], np.cumsum(counts)]))
        self._owners = Buffer(np.int32, np.repeat(np.arange(len(counts)), counts))
        self._dead = 0
        self._forget_filters()

    def save(self, path: Path) -> None:
        """Write the graph to a file; the rest is in the tables."""
        self._vectors.save(path)

    def load(self, path: Path) -> None:
        """Take the graph from a file that is known to be whole, after all documents were added.

        Raises:
            InvalidRequest: it does not fit them.
        """
        self._vectors.load(path)
