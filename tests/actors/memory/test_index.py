"""The index against an exact oracle: numpy over all that is alive, and the plain definition of filters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ayllu.actors.memory import vectors as vectors_module
from ayllu.actors.memory.index import BankIndex, IndexedDocument
from ayllu.schemas import InvalidRequest
from ayllu.schemas.filters import Eq, Filter, Gt, Lt, matches

DIMENSION = 24


def clustered(
    random: np.random.Generator, count: int, dimension: int = DIMENSION
) -> NDArray[np.float32]:
    """Return normalised vectors around some centres, as those of texts are."""
    centres = random.normal(size=(max(1, count // 50), dimension))
    found = centres[random.integers(len(centres), size=count)] + 0.4 * random.normal(
        size=(count, dimension)
    )
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    normalised: NDArray[np.float32] = (found / lengths).astype(np.float32)
    return normalised


class Oracle:
    """What an index must find: documents of one or two chunks under ascending labels."""

    def __init__(self, seed: int, dimension: int = DIMENSION) -> None:
        self.random = np.random.default_rng(seed)
        self.dimension = dimension
        self.documents: dict[int, IndexedDocument] = {}
        self._next = 1

    def new(self, count: int) -> list[IndexedDocument]:
        rows = clustered(self.random, 2 * count, self.dimension)
        made = []
        for number in range(count):
            size = 1 + int(self.random.integers(2))
            self._next += size + int(self.random.integers(3))
            labels = np.arange(self._next - size, self._next, dtype=np.int64)
            metadata = {"n": self._next % 1000, "part": "abc"[self._next % 3]}
            made.append(
                IndexedDocument(
                    int(labels[0]), metadata, labels, rows[2 * number : 2 * number + size]
                )
            )
        self.documents |= {one.label: one for one in made}
        return made

    def some(self, count: int) -> list[int]:
        chosen = self.random.permutation(sorted(self.documents))[:count]
        return [int(label) for label in chosen]

    def search(self, queries: NDArray[np.float32], k: int, wanted: Filter | None) -> list[set[int]]:
        fitting = [
            one
            for one in self.documents.values()
            if wanted is None or matches(wanted, one.metadata)
        ]
        if not fitting:
            return [set() for _ in queries]
        labels = np.concatenate([one.chunk_labels for one in fitting])
        scores = queries @ np.concatenate([one.vectors for one in fitting]).T
        return [set(labels[np.argsort(-row, kind="stable")[:k]].tolist()) for row in scores]


def settle(index: BankIndex) -> None:
    while index.maintain(1.0):
        pass


def recall(index: BankIndex, oracle: Oracle, k: int = 10, wanted: Filter | None = None) -> float:
    queries = clustered(oracle.random, 50, oracle.dimension)
    labels, _ = index.search(queries, k, wanted)
    expected = oracle.search(queries, k, wanted)
    wrong = sum(len(there - set(row)) for row, there in zip(labels.tolist(), expected, strict=True))
    return 1.0 - wrong / max(1, sum(map(len, expected)))


def all_found(index: BankIndex, oracle: Oracle) -> bool:
    for document in oracle.documents.values():
        labels, _ = index.search(document.vectors, 1, None)
        if labels[:, 0].tolist() != document.chunk_labels.tolist():
            return False
    return True


@pytest.fixture(autouse=True)
def small_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let graphs begin early, so that small tests reach them."""
    monkeypatch.setattr(vectors_module, "GRAPH_FROM", 64)
    monkeypatch.setattr(vectors_module, "REBUILD_LEAST", 32)
    monkeypatch.setattr("ayllu.actors.memory.index.COMPACT_LEAST", 32)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "replace", "maintain", "settle", "reload"]),
        st.integers(1, 60),
    ),
    max_size=25,
)


@pytest.mark.requirement("index-agrees")
@settings(max_examples=40, deadline=None)
@given(actions=ACTIONS, seed=st.integers(0, 1 << 16))
def test_the_index_agrees_with_the_oracle_after_any_history(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]], seed: int
) -> None:
    oracle, index = Oracle(seed), BankIndex(DIMENSION)
    for action, count in actions:
        if action in ("remove", "replace"):
            gone = oracle.some(count)
            for label in gone:
                del oracle.documents[label]
            index.remove(gone)
        if action in ("add", "replace"):
            index.add(oracle.new(count))
        if action == "maintain":
            index.maintain(0.0)
        if action == "settle":
            settle(index)
        if action == "reload":
            path = tmp_path_factory.mktemp("graph") / "x.graph"
            index.save(path)
            index = BankIndex(DIMENSION)
            index.add(list(oracle.documents.values()))
            index.load(path)
    assert len(index) == len(oracle.documents)
    assert index.stats().chunks == sum(len(one.chunk_labels) for one in oracle.documents.values())
    assert index.matching(None).tolist() == sorted(oracle.documents)
    assert all_found(index, oracle)
    for wanted in (None, Eq("part", "a"), Lt("n", 40), Gt("n", 5000)):
        assert recall(index, oracle, 5, wanted) >= 0.95
    for one in oracle.documents.values():
        allowed = index.allowed(one.chunk_labels, Eq("part", "b"))
        assert allowed.tolist() == [matches(Eq("part", "b"), one.metadata)] * len(one.chunk_labels)


@pytest.mark.requirement("index-filters")
@pytest.mark.parametrize("wanted", [Eq("part", "a"), Lt("n", 100), Lt("n", 3), Eq("n", -1)])
def test_a_filter_of_any_selectivity_finds_as_much_as_there_is(wanted: Filter) -> None:
    oracle, index = Oracle(3), BankIndex(DIMENSION)
    index.add(oracle.new(6000))
    settle(index)
    assert index.stats().indexed == index.stats().chunks
    assert recall(index, oracle, 10, wanted) >= 0.98


@pytest.mark.requirement("index-filters")
def test_a_filter_that_goes_with_the_other_end_of_the_bank_is_answered_exactly() -> None:
    """All near vectors fail the filter: candidates of the graph are of no use."""
    random = np.random.default_rng(5)
    index = BankIndex(DIMENSION)
    east, west = clustered(random, 1, DIMENSION)[0], -clustered(random, 1, DIMENSION)[0]
    documents = []
    for number in range(6000):
        side, name = (east, "east") if number % 4 else (west, "west")
        vector = side + 0.05 * random.normal(size=DIMENSION).astype(np.float32)
        vector /= np.linalg.norm(vector)
        labels = np.array([number + 1], np.int64)
        documents.append(IndexedDocument(number + 1, {"side": name}, labels, vector[None, :]))
    index.add(documents)
    settle(index)
    labels, _ = index.search(east[None, :], 10, Eq("side", "west"))
    scores = {
        one.label: float(one.vectors[0] @ east)
        for one in documents
        if one.metadata["side"] == "west"
    }
    assert set(labels[0].tolist()) == set(sorted(scores, key=lambda label: -scores[label])[:10])


@pytest.mark.requirement("index-agrees")
def test_copies_of_one_vector_and_a_zero_vector_do_no_harm() -> None:
    index = BankIndex(DIMENSION)
    one = clustered(np.random.default_rng(1), 1)[0]
    rows = [one] * 300 + [np.zeros(DIMENSION, np.float32)]
    index.add(
        [
            IndexedDocument(n, {}, np.array([n], np.int64), row[None, :])
            for n, row in enumerate(rows, 1)
        ]
    )
    settle(index)
    labels, scores = index.search(one[None, :], 300, None)
    assert sorted(labels[0].tolist()) == list(range(1, 301))
    assert scores.min() > 0.999
    index.remove(list(range(1, 300)))
    settle(index)
    labels, _ = index.search(one[None, :], 5, None)
    assert labels[0].tolist() == [300, 301]


@pytest.mark.requirement("memory-snapshot-damage")
def test_a_graph_of_other_vectors_is_refused(tmp_path: Path) -> None:
    oracle, index = Oracle(1), BankIndex(DIMENSION)
    index.add(oracle.new(200))
    settle(index)
    index.save(tmp_path / "x.graph")
    other = BankIndex(DIMENSION)
    other.add(Oracle(2).new(300))
    with pytest.raises(InvalidRequest):
        other.load(tmp_path / "x.graph")
    with pytest.raises(InvalidRequest):
        BankIndex(DIMENSION + 1).load(tmp_path / "x.graph")
    (tmp_path / "x.graph").write_bytes(b"{}\n")
    with pytest.raises(InvalidRequest):
        BankIndex(DIMENSION).load(tmp_path / "x.graph")


@pytest.mark.slow
@pytest.mark.requirement("index-churn")
def test_nothing_is_lost_under_churn(monkeypatch: pytest.MonkeyPatch) -> None:
    """20 rounds in which a fifth of 10,000 documents is replaced or removed, with upkeep between as time allows."""
    monkeypatch.undo()
    oracle, index = Oracle(7, 64), BankIndex(64)
    index.add(oracle.new(10_000))
    settle(index)
    for number in range(20):
        gone = oracle.some(2000)
        for label in gone:
            del oracle.documents[label]
        index.remove(gone)
        index.add(oracle.new(2000 if number % 4 else 1000))
        index.maintain(0.2)
        assert recall(index, oracle) >= 0.95
    settle(index)
    assert recall(index, oracle) >= 0.95
    assert recall(index, oracle, wanted=Eq("part", "c")) >= 0.95
    assert all_found(index, oracle)
