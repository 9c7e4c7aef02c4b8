"""Search in a memory bank of clustered vectors, beside bare hnswlib and exact numpy over what matches.

Three depths of ours: the **index** (filter and search, as hnswlib and numpy: vectors in, numbers out); the **actor's own
path** (the bank's lock, a hop to a thread, index, the texts of the chunks from the tables), with one caller and with
`CALLERS` at once, whose queries an actor answers together; and a call **over the bus**. "hnswlib" is its `knn_query` with the
same M, ef_construction and ef, unfiltered; "numpy" multiplies the rows that match, whose numbers it is given.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import hnswlib
import numpy as np
from anyio import to_thread
from numpy.typing import NDArray

from ayllu.actors.memory.actors import MemoryActors, memory_actors
from ayllu.actors.memory.bank import Bank, DocumentChange
from ayllu.actors.memory.graph import BUILD_WIDTH, NEIGHBOURS, SEARCH_WIDTH
from ayllu.actors.memory.log import BankSettings, DocumentStored
from ayllu.bus.bus import connect
from ayllu.bus.client import client
from ayllu.bus.service import serve
from ayllu.schemas import MemoryBankDocument, MemoryBankDocuments, MemoryBankQuery
from ayllu.schemas.filters import Lt

from .numbers import Measure, alternate, ratios, spread
from .topology import Place

DIMENSION, K, QUERIES, BATCH, CALLERS, PARTS = 384, 10, 320, 64, 16, 1000
SHARES = {"100 %": PARTS, "10 %": 100, "1 %": 10, "0.1 %": 1}
"""What part of the documents a filter lets through."""
BANK = "bench"
Matrix = NDArray[np.float32]
Rows = NDArray[np.int64]


def clustered(random: np.random.Generator, count: int, centres: Matrix) -> Matrix:
    """Return normalised vectors around centres."""
    found = centres[random.integers(len(centres), size=count)]
    found = found + random.normal(size=found.shape) / np.sqrt(DIMENSION)
    normal: Matrix = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return normal


def dataset(count: int) -> tuple[Matrix, Matrix]:
    """Return vectors and queries around the same centres, the same at each call."""
    random = np.random.default_rng(1)
    centres = random.normal(size=(max(4, count // 500), DIMENSION)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    return clustered(random, count, centres), clustered(random, QUERIES, centres)


async def measure_vectors(place: Place, pairs: int, count: int) -> dict[str, Any]:
    """Measure recall, queries a second and p99 at each selectivity."""
    vectors, queries = dataset(count)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(dir=place.folder))
        bus = await stack.enter_async_context(connect(place.bus))
        asking = await stack.enter_async_context(connect(place.bus))
        actors = await stack.enter_async_context(memory_actors(bus, Path(folder), {}, ""))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        await tasks.start(serve, bus, actors.documents)
        bank, built = await _fill(actors, Path(folder), vectors)
        bare, bare_built = await to_thread.run_sync(_bare, vectors)
        result: dict[str, Any] = {
            "build_seconds": {"ours": built, "hnswlib": bare_built},
            "bytes_per_vector": bank.index.stats().bytes / count,
        }
        stub = client(MemoryBankDocuments, asking)
        for name, part in SHARES.items():
            rows = np.flatnonzero(np.arange(count) % PARTS < part)
            measures = {
                "index": (_index(bank, part), 1),
                "actor": (_actor(actors, bank, part), 1),
                f"actor, {CALLERS} callers": (_callers(_actor(actors, bank, part)), CALLERS),
                f"actor, {BATCH} in a call": (_actor(actors, bank, part), BATCH),
                "bus": (_bus(stub, part), 1),
                "numpy": (_numpy(vectors, rows), 1),
                f"numpy, {BATCH} at once": (_numpy(vectors, rows), BATCH),
            }
            if part == PARTS:
                measures |= {
                    "hnswlib": (_hnswlib(bare), 1),
                    f"hnswlib, {BATCH} at once": (_hnswlib(bare), BATCH),
                }
            exact = _exact(queries, vectors, rows)
            timed = {
                name: _measure(search, queries, exact, size)
                for name, (search, size) in measures.items()
            }
            result[name] = await alternate(timed, pairs)
        tasks.cancel_scope.cancel()
    return result


async def _fill(actors: MemoryActors, folder: Path, vectors: Matrix) -> tuple[Bank, float]:
    """Put documents into a bank past the log, and return it with the seconds that its graph took."""
    settings = BankSettings("none", DIMENSION, 200, 20)
    bank = Bank.empty(BANK, BANK, settings, folder / "bench.sqlite")
    for start in range(0, len(vectors), 1000):
        numbers = range(start, min(start + 1000, len(vectors)))
        changes = [
            DocumentChange(str(number), stored(number, vectors[number])) for number in numbers
        ]
        await to_thread.run_sync(bank.apply, changes)
    begun = time.perf_counter()
    while await to_thread.run_sync(bank.index.maintain, 1.0):
        pass
    actors.replica.banks[BANK] = bank
    return bank, time.perf_counter() - begun


def stored(number: int, vector: Matrix) -> DocumentStored:
    """Return a document as the log has it, with one chunk."""
    content = b"a chunk of text, %d" % number
    document = MemoryBankDocument(str(number), content, {"n": number % PARTS}, "text/plain")
    return DocumentStored(
        request="", document=document, chunks=[content.decode()], vectors=vector.tobytes()
    )


def _bare(vectors: Matrix) -> tuple[Any, float]:
    index = hnswlib.Index(space="ip", dim=DIMENSION)
    index.init_index(len(vectors), M=NEIGHBOURS, ef_construction=BUILD_WIDTH, random_seed=1)
    begun = time.perf_counter()
    index.add_items(vectors)
    index.set_ef(SEARCH_WIDTH)
    return index, time.perf_counter() - begun


Found = list[list[int]]
Search = Callable[[Matrix], Awaitable[Found]]
"""Answers one query or several, and returns the numbers of vectors for each."""


def _filter(part: int) -> Lt | None:
    return None if part == PARTS else Lt("n", part)


def _queries(rows: Matrix, part: int) -> list[MemoryBankQuery]:
    return [
        MemoryBankQuery(vector=row, k=K, filter=_filter(part), include_documents=False)
        for row in rows.tolist()
    ]


def _index(bank: Bank, part: int) -> Search:
    async def search(queries: Matrix) -> Found:
        labels, _ = bank.index.search(queries, K, _filter(part))
        found: Found = (labels - 1).tolist()  # Labels count from 1.
        return found

    return search


def _actor(actors: MemoryActors, bank: Bank, part: int) -> Search:
    async def search(queries: Matrix) -> Found:
        found = await actors.documents.search(bank, _queries(queries, part))
        return [[int(match.document_uuid) for match in result.matches] for result in found]

    return search


def _callers(search: Search) -> Search:
    """Ask each query by a caller of its own, all at once."""

    async def ask(queries: Matrix) -> Found:
        found: dict[int, list[int]] = {}

        async def caller(number: int) -> None:
            [found[number]] = await search(queries[number : number + 1])

        async with anyio.create_task_group() as tasks:
            for number in range(len(queries)):
                tasks.start_soon(caller, number)
        return [found[number] for number in range(len(queries))]

    return ask


def _bus(stub: MemoryBankDocuments, part: int) -> Search:
    async def search(queries: Matrix) -> Found:
        found = stub.query(BANK, _queries(queries, part))
        return [[int(match.document_uuid) for match in one.matches] async for one in found]

    return search


def _hnswlib(index: Any) -> Search:
    async def search(queries: Matrix) -> Found:
        labels: Found = index.knn_query(queries, K)[0].tolist()
        return labels

    return search


def _numpy(vectors: Matrix, rows: Rows) -> Search:
    async def search(queries: Matrix) -> Found:
        scores = queries @ (vectors if len(rows) == len(vectors) else vectors[rows]).T
        best = np.argpartition(-scores, min(K, len(rows)) - 1, axis=1)[:, :K]
        found: Found = rows[best].tolist()
        return found

    return search


def _exact(queries: Matrix, vectors: Matrix, rows: Rows) -> list[set[int]]:
    return [set(rows[np.argsort(-row)[:K]].tolist()) for row in queries @ vectors[rows].T]


def _measure(search: Search, queries: Matrix, exact: Sequence[set[int]], size: int) -> Measure:
    async def measure() -> dict[str, float]:
        found: Found = []
        times = []
        for start in range(0, len(queries), size):
            begun = time.perf_counter()
            found += await search(queries[start : start + size])
            times.append(time.perf_counter() - begun)
        hits = sum(len(there & set(row)) for there, row in zip(exact, found, strict=True))
        return {
            "queries_per_second": len(queries) / sum(times),
            "p99_ms": float(np.percentile(times, 99)) * 1000,
            "recall": hits / sum(map(len, exact)),
        }

    return measure


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    built = result["build_seconds"]
    lines = [
        ("bytes of memory a vector", f"{result['bytes_per_vector']:,.0f}"),
        ("graph, s (ours / hnswlib)", f"{built['ours']:.0f} / {built['hnswlib']:.0f}"),
    ]
    for share in SHARES:
        for name, runs in result[share].items():
            numbers = (
                f"{spread(runs['queries_per_second'])}, p99 {spread(runs['p99_ms']).median:.3g} ms, "
                f"recall@{K} {spread(runs['recall']).median:.3f}"
            )
            lines.append((f"{share}: {name}, queries/s", numbers))
        lines += _comparisons(share, result[share])
    return lines


def _comparisons(share: str, values: dict[str, Any]) -> list[tuple[str, str]]:
    speed = {name: runs["queries_per_second"] for name, runs in values.items()}
    best = "hnswlib" if "hnswlib" in speed else "numpy"
    together = f"{best}, {BATCH} at once"
    pairs = [
        ("index", best),
        ("actor", best),
        (f"actor, {CALLERS} callers", best),
        (f"actor, {BATCH} in a call", together),
        ("bus", "actor"),
    ]
    return [
        (f"{share}: {ours} / {other}", str(ratios(speed[ours], speed[other])))
        for ours, other in pairs
    ]
