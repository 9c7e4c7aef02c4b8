"""The vectors of a bank: a matrix that is the truth, and a graph that finds candidates in it.

Nothing that is alive can be lost: a vector is looked at one by one until it stands in the graph *and the graph was seen to
find it*; what the graph does not find stays among those that are looked at one by one. A graph in which too much was
deleted is built anew beside the old one, slice by slice. Small banks have no graph at all.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...schemas import InvalidRequest
from .arrays import Buffer, room
from .graph import SEARCH_WIDTH, Graph, Labels, Scores

GRAPH_FROM = 4096
"""From how many vectors on there is a graph; below, looking at all is as fast."""
REBUILD_DEAD, REBUILD_LEAST = 0.3, 1024
"""A graph is built anew when so great a part of it, and so many vectors, are dead."""
INSERT_SLICE, CHECK_SLICE = 32, 128
"""Vectors that `maintain` moves or checks between two looks at the clock."""
FOUND_WITHIN = 10
"""A vector counts as found when it is among so many results for itself, or they are as near."""
SAME = 1e-5
FEW = 256
"""So few numbers are sorted as fast as the best of them are found."""

ROW_COST, CANDIDATE_COST = 0.35, 5.0
"""Microseconds for one row of an exact search (384 numbers, gathered), and one candidate of the graph: only their ratio
matters, for the choice between the two."""
SPARE = 1.5
"""How many more candidates than the filter's share of the bank suggests are taken from the graph."""

Rows = NDArray[np.int64]


class Header(msgspec.Struct, frozen=True):
    """The first line of a graph's file.

    Attributes:
        dimension: the length of the vectors.
        last: the highest label that was moved into the graph; 0 where there is no graph.
        checked: the highest label of those that the graph was seen to find, but for the strays.
        strays: labels that the graph does not find.
    """

    dimension: int
    last: int
    checked: int
    strays: list[int]


class Vectors:
    """Normalised vectors under ascending labels. `search` and properties are reads, all else writes."""

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._matrix = np.empty((0, dimension), np.float32)
        self._labels = Buffer(np.int64)
        self._alive = Buffer(np.bool_)
        self._dead = 0
        self._graph: Graph | None = None
        self._moved = 0  # rows before this one are in the graph, if they are alive
        self._checked = 0  # and of those the graph finds all before this one, but for the strays
        self._strays: set[int] = set()  # labels
        self._size_checked = 0  # of the graph, when all of it was last checked
        self._next: Graph | None = None  # being built
        self._next_moved = 0
        self._beside: Rows | None = None

    def __len__(self) -> int:
        """How many are alive."""
        return len(self._labels) - self._dead

    @property
    def labels(self) -> Labels:
        """The label of each row, in ascending order."""
        return self._labels.values

    @property
    def alive(self) -> NDArray[np.bool_]:
        """Whether each row is alive."""
        return self._alive.values

    @property
    def indexed(self) -> int:
        """How many the graph finds."""
        return 0 if self._graph is None else len(self._graph)

    @property
    def dead(self) -> int:
        """How many rows are dead."""
        return self._dead

    @property
    def nbytes(self) -> int:
        """The bytes that they take, graphs included."""
        graphs = sum(graph.nbytes for graph in (self._graph, self._next) if graph is not None)
        return self._matrix.nbytes + self._labels.nbytes + self._alive.nbytes + graphs

    def rows(self, labels: Labels) -> Rows:
        """Return the rows of labels that are there."""
        return np.searchsorted(self.labels, labels)

    def add(self, labels: Labels, vectors: NDArray[np.float32]) -> None:
        """Append vectors under labels greater than all before."""
        start, end = len(self._labels), len(self._labels) + len(labels)
        self._matrix = room(self._matrix, end)
        self._matrix[start:end] = vectors
        self._labels.extend(labels)
        self._alive.extend(np.ones(len(labels), np.bool_))
        self._beside = None

    def remove(self, rows: Rows) -> None:
        """Let rows that are alive no longer be found."""
        self._alive.values[rows] = False
        self._dead += len(rows)
        labels = self.labels
        self._strays -= set(labels[rows].tolist())
        for graph, moved in ((self._graph, self._moved), (self._next, self._next_moved)):
            if graph is not None:
                graph.remove(labels[rows[rows < moved]].tolist())
        self._beside = None

    # Searching.

    def search(
        self, queries: NDArray[np.float32], k: int, matching: Rows | None
    ) -> tuple[Labels, Scores]:
        """Return labels and inner products, best first, for each query; -1 where fewer are found.

        Args:
            queries: one row each, normalised.
            k: how many are wanted.
            matching: the rows that may be found, all alive; None for all that are.
        """
        count = len(self) if matching is None else len(matching)
        k = min(k, count)
        if not k:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        if self._graph is None or not len(self._graph):
            return self._exact(queries, k, self._all() if matching is None else matching)
        if matching is None:
            return self._with_graph(queries, k)
        return self._filtered(queries, k, matching)

    def _all(self) -> Rows:
        return np.flatnonzero(self.alive)

    def _exact(self, queries: NDArray[np.float32], k: int, rows: Rows) -> tuple[Labels, Scores]:
        whole = len(rows) == len(self._labels)
        vectors = self._matrix[: len(rows)] if whole else self._matrix.take(rows, axis=0)
        scores = queries @ vectors.T
        places, best = _best(scores, k)
        return self.labels[rows[places]], best

    def _with_graph(self, queries: NDArray[np.float32], k: int) -> tuple[Labels, Scores]:
        assert self._graph is not None
        found = self._graph.search(queries, k)
        beside = self._looked_at()
        if found[0].shape[1] < min(k, len(self._graph)):
            # A part of the graph, copies of one vector above all, cannot be reached.
            return self._exact(queries, k, self._all())
        if not len(beside):
            return found
        scores = queries @ self._matrix[beside].T
        if found[0].shape[1] == k and (scores.max(axis=1) <= found[1][:, -1]).all():
            return found
        return _merged(found, (np.broadcast_to(self.labels[beside], scores.shape), scores), k)

    def _looked_at(self) -> Rows:
        """Return the rows that are alive and looked at one by one; kept until the next change."""
        if self._beside is None:
            tail = self._checked + np.flatnonzero(self.alive[self._checked :])
            strays = self.rows(np.array(sorted(self._strays), np.int64))
            self._beside = np.concatenate([strays[strays < self._checked], tail])
        return self._beside

    def _filtered(
        self, queries: NDArray[np.float32], k: int, matching: Rows
    ) -> tuple[Labels, Scores]:
        """Take more candidates from the graph than are wanted, or look at all that match: whichever costs less."""
        wanted = int(k * SPARE * len(self) / len(matching)) + k
        exact_cost = len(matching) * ROW_COST
        if max(wanted, SEARCH_WIDTH) * CANDIDATE_COST >= exact_cost:
            return self._exact(queries, k, matching)
        fits = np.zeros(len(self._labels), np.bool_)
        fits[matching] = True
        labels = np.empty((len(queries), k), np.int64)
        scores = np.empty((len(queries), k), np.float32)
        left = np.arange(len(queries))
        while len(left) and max(wanted, SEARCH_WIDTH) * CANDIDATE_COST < exact_cost:
            found, values = self._with_graph(queries[left], wanted)
            rows = self.rows(found)
            passing = np.where(found >= 0, fits[np.minimum(rows, len(fits) - 1)], False)
            enough = passing.sum(axis=1) >= k
            # What passes comes first, in its order.
            order = np.argsort(~passing[enough], axis=1, kind="stable")[:, :k]
            labels[left[enough]] = _at(found[enough], order)
            scores[left[enough]] = _at(values[enough], order)
            left = left[~enough]
            wanted *= 4
        if len(left):
            labels[left], scores[left] = self._exact(queries[left], k, matching)
        return labels, scores

    # Upkeep.

    def maintain(self, seconds: float) -> bool:
        """Move vectors into the graph, check that it finds them, or build it anew, for about so long.

        Returns:
            whether there is more to do.
        """
        end = time.monotonic() + seconds
        while self._step():
            if time.monotonic() >= end:
                return True
        return False

    def _step(self) -> bool:
        if self._next is not None:
            self._grow_next()
        elif self._graph is None:
            if len(self) < GRAPH_FROM:
                return False
            self._graph = Graph(self._dimension)
        elif self._graph.deleted > max(REBUILD_LEAST, REBUILD_DEAD * (len(self._graph) + 1)):
            self._next, self._next_moved = Graph(self._dimension), 0
        elif self._moved < len(self._labels):
            self._moved = self._insert(self._graph, self._moved)
        elif self._checked < len(self._labels):
            self._check(self._graph)
        elif len(self._graph) > 1.2 * self._size_checked:
            # Later neighbours may have cut off earlier ones.
            self._size_checked = len(self._graph)
            self._checked = 0
            self._beside = None
        else:
            return False
        return True

    def _insert(self, graph: Graph, start: int) -> int:
        end = min(start + INSERT_SLICE, len(self._labels))
        rows = start + np.flatnonzero(self.alive[start:end])
        if len(rows):
            graph.add(self._matrix[rows], self.labels[rows])
        return end

    def _grow_next(self) -> None:
        assert self._next is not None
        if self._next_moved < len(self._labels):
            self._next_moved = self._insert(self._next, self._next_moved)
            return
        self._graph, self._next = self._next, None
        self._moved, self._checked, self._size_checked = self._next_moved, 0, 0
        self._strays.clear()
        self._beside = None

    def _check(self, graph: Graph) -> None:
        end = min(self._checked + CHECK_SLICE, self._moved)
        rows = self._checked + np.flatnonzero(self.alive[self._checked : end])
        if len(rows):
            vectors, labels = self._matrix[rows], self.labels[rows]
            found, scores = graph.search(vectors, FOUND_WITHIN)
            itself = np.einsum("ij,ij->i", vectors, vectors)
            seen = (found == labels[:, None]).any(axis=1)
            if scores.shape[1]:
                seen |= scores[:, -1] >= itself - SAME
            self._strays -= set(labels.tolist())
            self._strays |= set(labels[~seen].tolist())
        self._checked = end
        if end == self._moved:
            self._size_checked = max(self._size_checked, len(graph))
        self._beside = None

    def compact(self) -> None:
        """Drop dead rows, so that the matrix does not grow with churn; rows are numbered anew, labels stay."""
        alive = self.alive.copy()
        counts = np.concatenate([[0], np.cumsum(alive)])
        self._matrix = self._matrix[: len(alive)][alive]
        self._labels = Buffer(np.int64, self.labels[alive])
        self._alive = Buffer(np.bool_, np.ones(len(self._labels), np.bool_))
        self._dead = 0
        self._moved, self._checked, self._next_moved = (
            int(counts[place]) for place in (self._moved, self._checked, self._next_moved)
        )
        self._beside = None

    # Files.

    def save(self, path: Path) -> None:
        """Write the graph to a file (a read)."""
        labels = self.labels
        if self._graph is None:
            path.write_bytes(msgspec.json.encode(Header(self._dimension, 0, 0, [])) + b"\n")
            return
        header = Header(
            self._dimension,
            int(labels[self._moved - 1]) if self._moved else 0,
            int(labels[self._checked - 1]) if self._checked else 0,
            sorted(self._strays),
        )
        body = path.with_suffix(".body")
        self._graph.save(body)
        try:
            with path.open("wb") as file, body.open("rb") as saved:
                file.write(msgspec.json.encode(header) + b"\n")
                while block := saved.read(1 << 20):
                    file.write(block)
        finally:
            body.unlink()

    def load(self, path: Path) -> None:
        """Take the graph from a file that is known to be whole; all vectors were added, and none removed since.

        Raises:
            InvalidRequest: it does not fit the vectors.
        """
        body = path.with_suffix(".loaded")
        try:
            with path.open("rb") as file, body.open("wb") as saved:
                header = msgspec.json.decode(file.readline(), type=Header)
                while block := file.read(1 << 20):
                    saved.write(block)
            if header.dimension != self._dimension:
                raise InvalidRequest("the graph is of vectors of another length")
            if not header.last:
                return
            labels = self.labels
            moved = int(np.searchsorted(labels, header.last, side="right"))
            graph = Graph.load(body, self._dimension, labels[:moved])
            if len(graph) != moved:
                raise InvalidRequest("the graph lacks vectors")
        except (msgspec.DecodeError, RuntimeError) as error:
            raise InvalidRequest(f"the graph cannot be read: {error}") from error
        finally:
            body.unlink(missing_ok=True)
        self._graph, self._moved = graph, moved
        self._checked = int(np.searchsorted(labels, header.checked, side="right"))
        self._size_checked = len(graph)
        self._strays = set(header.strays) & set(labels.tolist()) if header.strays else set()
        self._beside = None


def _at(values: NDArray[Any], places: NDArray[np.intp]) -> NDArray[Any]:
    """Return the values of each row at some places (``take_along_axis`` without its checks, which cost more than a search)."""
    return values[np.arange(len(values))[:, None], places]


def _best(scores: Scores, k: int) -> tuple[NDArray[np.intp], Scores]:
    """Return the places of the k best of each row, best first, and their scores."""
    if len(scores) == 1:
        # Flat, which for the few rows that a narrow filter leaves takes half of the time.
        [row] = scores
        if k >= len(row) or len(row) <= FEW:
            places = np.argsort(-row)[:k]
        else:
            chosen = np.argpartition(row, -k)[-k:]
            places = chosen[np.argsort(-row[chosen])]
        return places[None], row[places][None]
    if k < scores.shape[1]:
        chosen = np.argpartition(scores, -k, axis=1)[:, -k:]
        places = _at(chosen, np.argsort(-_at(scores, chosen), axis=1))
    else:
        places = np.argsort(-scores, axis=1)
    return places, _at(scores, places)


def _merged(
    one: tuple[Labels, Scores], other: tuple[Labels, Scores], k: int
) -> tuple[Labels, Scores]:
    """Return the k best of two results, each label once."""
    labels = np.concatenate([one[0], other[0]], axis=1)
    scores = np.concatenate([one[1], other[1]], axis=1)
    order = np.argsort(labels, axis=1, kind="stable")
    labels, scores = _at(labels, order), _at(scores, order)
    twice = np.zeros(labels.shape, np.bool_)
    twice[:, 1:] = labels[:, 1:] == labels[:, :-1]
    scores = np.where(twice, -np.inf, scores).astype(np.float32)
    places, scores = _best(scores, min(k, labels.shape[1]))
    return np.where(np.isneginf(scores), -1, _at(labels, places)), scores
