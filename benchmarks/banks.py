"""How documents come into a bank, and how an actor comes back: documents a second, and seconds to ready after a restart.

The texts are the 300 news articles of the Lee background corpus, which the package gensim ships among its tests' data
(constraints/bench.txt); a memory actor stores them on a real bus, with the real embedding model and with one that costs nothing.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import anyio
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ayllu.actors.embedding.embedder import Embedder
from ayllu.actors.embedding.registry import build_embedder, default_embedders
from ayllu.actors.files import locate
from ayllu.actors.memory.actors import MemoryActors, memory_actors
from ayllu.actors.memory.bank import Bank
from ayllu.actors.memory.log import Change, document_subject
from ayllu.actors.memory.vectors import GRAPH_FROM
from ayllu.bus.bus import connect
from ayllu.schemas import MemoryBankDocument

from .numbers import Spread, spread
from .topology import Place
from .vectors import dataset, stored

CORPUS = "package:gensim/test/test_data/lee_background.cor"
BATCH = 32
LOG_BATCH = 100


class Timed:
    """An embedding model whose time is measured, or that takes none: then its vectors are random."""

    def __init__(self, model: Embedder, *, real: bool) -> None:
        self.name, self.dimension, self.max_tokens = model.name, model.dimension, model.max_tokens
        self.seconds = 0.0
        self._model, self._real = model, real

    @property
    def tokenizer(self) -> Tokenizer:
        return self._model.tokenizer

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._model.count_tokens(texts)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if not self._real:
            found = np.random.default_rng(len(texts)).normal(size=(len(texts), self.dimension))
            return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)
        begun = time.perf_counter()
        try:
            return await self._model.embed(texts)
        finally:
            self.seconds += time.perf_counter() - begun

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass


async def measure_ingest(place: Place, pairs: int, *, tiny: bool = False) -> dict[str, Any]:
    """Measure documents and chunks a second, with and without the time of the embedding model."""
    texts = (await anyio.Path(locate(CORPUS)).read_text()).splitlines()
    documents = [
        MemoryBankDocument(str(number), text.encode(), {"n": number}, "text/plain")
        for number, text in enumerate(texts[:40] if tiny else texts)
    ]
    found: dict[str, dict[str, list[float]]] = {"real": {}, "free": {}}
    async with build_embedder(default_embedders()[0]) as model:
        for _ in range(min(pairs, 3)):
            for kind, values in found.items():
                embedder = Timed(model, real=kind == "real")
                async with _actors(place, embedder) as actors:
                    begun = time.perf_counter()
                    await actors.banks.create("ingest", "ingest", [])
                    for start in range(0, len(documents), BATCH):
                        await actors.documents.insert("ingest", documents[start : start + BATCH])
                    chunks = (await actors.documents.stats("ingest")).chunks
                    seconds = time.perf_counter() - begun
                    await actors.banks.drop("ingest")
                for quantity, value in (
                    ("documents_per_second", len(documents) / seconds),
                    ("chunks_per_second", chunks / seconds),
                    ("share_of_embedding", embedder.seconds / seconds),
                ):
                    values.setdefault(quantity, []).append(value)
    return {
        kind: {quantity: spread(runs) for quantity, runs in values.items()}
        for kind, values in found.items()
    }


@asynccontextmanager
async def _actors(
    place: Place, embedder: Embedder, folder: Path | None = None
) -> AsyncIterator[MemoryActors]:
    with TemporaryDirectory(dir=place.folder) as own:
        async with (
            connect(place.bus) as bus,
            memory_actors(
                bus, folder or Path(own), {embedder.name: embedder}, embedder.name
            ) as actors,
        ):
            yield actors


def ingest_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    return [
        ("documents/s", str(result["real"]["documents_per_second"])),
        ("chunks/s", str(result["real"]["chunks_per_second"])),
        ("the embedding model's share of the time", str(result["real"]["share_of_embedding"])),
        ("documents/s if embedding cost nothing", str(result["free"]["documents_per_second"])),
    ]


async def measure_restart(place: Place, pairs: int, count: int) -> dict[str, Any]:
    """Measure the seconds until an actor is ready, and until its graph is, with and without a snapshot."""
    vectors, _ = dataset(count)
    found: dict[str, list[float]] = {}
    folder = place.folder / "restart"
    async with build_embedder(default_embedders()[0]) as model:
        embedder = Timed(model, real=False)
        async with _actors(place, embedder, folder) as actors:
            await actors.banks.create("restart", "restart", [])
            begun = time.perf_counter()
            await _append(actors, vectors)
            found["documents appended to the log a second"] = [
                count / (time.perf_counter() - begun)
            ]
            await _built(actors)
        for _ in range(min(pairs, 3)):
            for kind in ("with a snapshot", "without one"):
                if kind == "without one":
                    await anyio.to_thread.run_sync(shutil.rmtree, folder)
                begun = time.perf_counter()
                async with _actors(place, embedder, folder) as actors:
                    found.setdefault(f"ready {kind}, s", []).append(time.perf_counter() - begun)
                    await _built(actors)
                    found.setdefault(f"graph complete {kind}, s", []).append(
                        time.perf_counter() - begun
                    )
        async with _actors(place, embedder, folder) as actors:
            await actors.banks.drop("restart")
    return {name: spread(runs) for name, runs in found.items()}


async def _append(actors: MemoryActors, vectors: NDArray[np.float32]) -> None:
    """Append documents to the log as the actor does, without a model."""
    writer = actors.banks._writer

    async def check() -> None:
        pass

    for start in range(0, len(vectors), LOG_BATCH):
        changes: list[tuple[str, Change]] = [
            (document_subject("restart", str(number)), stored(number, vectors[number]))
            for number in range(start, min(start + LOG_BATCH, len(vectors)))
        ]
        await writer.write(changes, check)


async def _built(actors: MemoryActors) -> None:
    """Wait until all vectors of the bank are in its graph."""
    bank: Bank = actors.replica.banks["restart"]
    await actors.replica.current()
    while (stats := bank.index.stats()).chunks >= GRAPH_FROM and stats.indexed < stats.chunks:  # noqa: ASYNC110
        await anyio.sleep(0.02)


def restart_rows(result: dict[str, Spread]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    return [(name, str(runs)) for name, runs in result.items()]
