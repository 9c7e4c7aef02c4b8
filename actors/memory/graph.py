"""A graph of hnswlib over normalised vectors: it finds candidates fast, and may miss some.

hnswlib facts that this module is built on (0.8): search and insertion at once can crash, so the owner lets nobody in
while it changes; `knn_query` raises where it finds fewer than it was asked for; what is marked as deleted stays in the
way, so that a graph with many of them is slow and has to be built anew; a search returns ``max(ef, k)`` candidates' best,
so that ``ef`` need never be changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
from numpy.typing import NDArray

NEIGHBOURS, BUILD_WIDTH, SEARCH_WIDTH = 16, 200, 100
"""M, ef_construction and ef of the HNSW paper (Malkov and Yashunin, 2016)."""
FIRST_CAPACITY = 4096

Labels = NDArray[np.int64]
Scores = NDArray[np.float32]


class Graph:
    """A graph; labels are any positive integers.

    Args:
        dimension: the length of the vectors.
    """

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._index: Any = hnswlib.Index(space="ip", dim=dimension)
        self._index.init_index(
            max_elements=FIRST_CAPACITY, M=NEIGHBOURS, ef_construction=BUILD_WIDTH, random_seed=1
        )
        self._set_up()
        self._deleted = 0

    def _set_up(self) -> None:
        self._index.set_ef(SEARCH_WIDTH)
        self._threads = len(os.sched_getaffinity(0))

    def __len__(self) -> int:
        """How many vectors can be found."""
        return int(self._index.get_current_count()) - self._deleted

    @property
    def deleted(self) -> int:
        """How many vectors are only in the way."""
        return self._deleted

    @property
    def nbytes(self) -> int:
        """About the bytes that it takes: vectors, links and labels."""
        links = (2 * NEIGHBOURS + 1) * 4 + 8
        return int(self._index.get_max_elements()) * (self._dimension * 4 + links)

    def add(self, vectors: NDArray[np.float32], labels: Labels) -> None:
        """Add vectors (a write)."""
        wanted = int(self._index.get_current_count()) + len(labels)
        if wanted > self._index.get_max_elements():
            self._index.resize_index(max(wanted, self._index.get_max_elements() * 3 // 2))
        self._index.add_items(vectors, labels, num_threads=self._threads)

    def remove(self, labels: Iterable[int]) -> None:
        """Let vectors no longer be found (a write)."""
        for label in labels:
            self._index.mark_deleted(label)
            self._deleted += 1

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[Labels, Scores]:
        """Return labels and inner products, best first, for each query; -1 where fewer are found (a read)."""
        wanted = min(k, len(self))
        while wanted > 0:
            try:
                labels, distances = self._index.knn_query(
                    queries, wanted, num_threads=self._threads
                )
            except RuntimeError:
                # Parts of the graph cannot be reached from its entrance.
                wanted //= 2
            else:
                return labels.astype(np.int64), 1.0 - distances
        return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)

    def save(self, path: Path) -> None:
        """Write it to a file (a read)."""
        self._index.save_index(str(path))

    @classmethod
    def load(cls, path: Path, dimension: int, alive: Labels) -> Graph:
        """Read it from a file that is known to be whole and our own: hnswlib trusts it (hnswlib#677).

        Args:
            path: the file.
            dimension: the length of the vectors.
            alive: the labels that may be found, in ascending order; all others are removed.

        Raises:
            RuntimeError: hnswlib cannot read it.
        """
        graph = cls(dimension)
        graph._index = hnswlib.Index(space="ip", dim=dimension)
        graph._index.load_index(str(path))
        graph._set_up()
        held = np.sort(np.array(graph._index.get_ids_list(), np.int64))
        for label in held[~np.isin(held, alive)].tolist():
            with suppress(RuntimeError):  # It was so before.
                graph._index.mark_deleted(label)
            graph._deleted += 1
        return graph

    def labels(self) -> Labels:
        """Return the labels of all vectors, also of those that cannot be found, in ascending order."""
        return np.sort(np.array(self._index.get_ids_list(), np.int64))
