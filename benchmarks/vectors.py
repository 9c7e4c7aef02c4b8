"""Search in a memory bank of clustered vectors, beside bare hnswlib and exact numpy over what matches.

"ours" is a memory actor's own path without the bus: filter, index, a hop to a thread, and the texts of the chunks from the
tables. "hnswlib" is its `knn_query` with the same M, ef_construction and ef, unfiltered; "numpy" multiplies the rows that
match, whose numbers it is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import hnswlib
import numpy as np
from numpy.typing import NDArray

from ayllu.actors.memory.actors import MemoryActors, memory_actors
from ayllu.actors.memory.bank import Bank, DocumentChange
from ayllu.actors.memory.graph import BUILD_WIDTH, NEIGHBOURS, SEARCH_WIDTH
from ayllu.actors.memory.log import BankSettings, DocumentStored
from ayllu.bus.bus import local_bus
from ayllu.schemas import MemoryBankDocument, MemoryBankQuery
from ayllu.schemas.filters import Lt

from .numbers import Measure, alternate, ratios, spread
from .topology import Place

DIMENSION, K, QUERIES, BATCH, PARTS = 384, 10, 200, 64, 1000
SHARES = {"100 %": PARTS, "10 %": 100, "1 %": 10, "0.1 %": 1}
"""What part of the documents a filter lets through."""
Matrix = NDArray[np.float32]


def clustered(random: np.random.Generator, count: int, centres: Matrix) -> Matrix:
    """Return normalised vectors around centres."""
    found = centres[random.integers(len(centres), size=count)]
    found = found + 0.5 * random.normal(size=found.shape) / np.sqrt(DIMENSION) * 2
    normal: Matrix = (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
    return normal


async def measure_vectors(place: Place, pairs: int, count: int) -> dict[str, Any]:
    """Measure recall, queries a second and p99 at each selectivity, single and in batches."""
    random = np.random.default_rng(1)
    centres = random.normal(size=(max(4, count // 500), DIMENSION)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    vectors, queries = clustered(random, count, centres), clustered(random, QUERIES, centres)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(dir=place.folder))
        bus = await stack.enter_async_context(local_bus())
        actors = await stack.enter_async_context(memory_actors(bus, Path(folder), {}, ""))
        bank, built = await _fill(actors, Path(folder), vectors)
        bare = hnswlib.Index(space="ip", dim=DIMENSION)
        bare.init_index(count, M=NEIGHBOURS, ef_construction=BUILD_WIDTH, random_seed=1)
        begun = time.perf_counter()
        await anyio.to_thread.run_sync(bare.add_items, vectors)
        bare_built = time.perf_counter() - begun
        bare.set_ef(SEARCH_WIDTH)
        result: dict[str, Any] = {
            "build_seconds": {"ours": built, "hnswlib": bare_built},
            "bytes_per_vector": bank.index.stats().bytes / count,
        }
        for name, part in SHARES.items():
            rows = np.flatnonzero(np.arange(count) % PARTS < part)
            measures: dict[str, Measure] = {
                "ours": _measure(_ours(actors, bank, part), queries, vectors, rows),
                "numpy": _measure(_numpy(vectors, rows), queries, vectors, rows),
            }
            if part == PARTS:
                measures["hnswlib"] = _measure(_hnswlib(bare), queries, vectors, rows)
                measures["ours in batches"] = _measure(
                    _ours(actors, bank, part), queries, vectors, rows, BATCH
                )
                measures["hnswlib in batches"] = _measure(
                    _hnswlib(bare), queries, vectors, rows, BATCH
                )
            result[name] = await alternate(measures, pairs)
        return result


async def _fill(actors: MemoryActors, folder: Path, vectors: Matrix) -> tuple[Bank, float]:
    """Put documents into a bank past the log, and return it with the seconds that its graph took."""
    settings = BankSettings("none", DIMENSION, 200, 20)
    bank = Bank.empty("bench", "bench", settings, folder / "bench.sqlite")
    for start in range(0, len(vectors), 1000):
        changes = [
            DocumentChange(
                str(number),
                DocumentStored(
                    request="",
                    document=MemoryBankDocument(
                        str(number), b"some text", {"n": number % PARTS}, "text/plain"
                    ),
                    chunks=["some text"],
                    vectors=vectors[number].tobytes(),
                ),
            )
            for number in range(start, min(start + 1000, len(vectors)))
        ]
        await anyio.to_thread.run_sync(bank.apply, changes)
    begun = time.perf_counter()
    while await anyio.to_thread.run_sync(bank.index.maintain, 1.0):
        pass
    actors.replica.banks["bench"] = bank
    return bank, time.perf_counter() - begun


Search = Callable[[Matrix], Any]
"""Answers one query or several, and returns the numbers of vectors for each."""


def _ours(actors: MemoryActors, bank: Bank, part: int) -> Search:
    wanted = None if part == PARTS else Lt("n", part)

    async def search(queries: Matrix) -> list[list[int]]:
        asked = [
            MemoryBankQuery(vector=row, k=K, filter=wanted, include_documents=False)
            for row in queries.tolist()
        ]
        found = await actors.documents.search(bank, asked)
        return [[int(match.document_uuid) for match in result.matches] for result in found]

    return search


def _hnswlib(index: Any) -> Search:
    async def search(queries: Matrix) -> list[list[int]]:
        labels: list[list[int]] = index.knn_query(queries, K)[0].tolist()
        return labels

    return search


def _numpy(vectors: Matrix, rows: NDArray[np.int64]) -> Search:
    async def search(queries: Matrix) -> list[list[int]]:
        scores = queries @ (vectors if len(rows) == len(vectors) else vectors[rows]).T
        best = np.argpartition(-scores, min(K, len(rows)) - 1, axis=1)[:, :K]
        found: list[list[int]] = rows[best].tolist()
        return found

    return search


def _measure(
    search: Search, queries: Matrix, vectors: Matrix, rows: NDArray[np.int64], size: int = 1
) -> Measure:
    exact = [set(rows[np.argsort(-row)[:K]].tolist()) for row in queries @ vectors[rows].T]

    async def measure() -> dict[str, float]:
        found: list[list[int]] = []
        times = []
        for start in range(0, len(queries), size):
            begun = time.perf_counter()
            found += await search(queries[start : start + size])
            times.append(time.perf_counter() - begun)
        hits = sum(len(there & set(row)) for there, row in zip(exact, found, strict=True))
        return {
            "queries_per_second": len(queries) / sum(times),
            "p99_ms": float(np.percentile(times, 99)) * 1000,
            "recall": hits / (K * len(queries)),
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
        values = result[share]
        for name, runs in values.items():
            lines += [
                (f"{share}, {name}, queries/s", str(spread(runs["queries_per_second"]))),
                (f"{share}, {name}, p99, ms", str(spread(runs["p99_ms"]))),
                (f"{share}, {name}, recall@{K}", str(spread(runs["recall"]))),
            ]
        speed = {name: runs["queries_per_second"] for name, runs in values.items()}
        for other in ("hnswlib", "numpy"):
            if other in speed:
                lines.append((f"{share}, ours / {other}", str(ratios(speed["ours"], speed[other]))))
        if "hnswlib in batches" in speed:
            batches = ratios(speed["ours in batches"], speed["hnswlib in batches"])
            lines.append((f"{share}, ours / hnswlib, batches of {BATCH}", str(batches)))
    return lines
