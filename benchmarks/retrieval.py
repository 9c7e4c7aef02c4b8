"""How well a bank finds: nDCG@10 by vectors, by words (BM25) and by both.

The data are the 50 news articles of Lee, Pincombe and Welsh (2005), "An empirical evaluation of models of text document
similarity", with the similarity of each pair as people judged it, from 0 to 1; the package gensim ships them among its tests'
data (constraints/bench.txt). Each article is a query for all others, their judged similarity to it is the gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import anyio

from ayllu.actors.embedding.registry import build_embedder, default_embedders
from ayllu.actors.files import locate
from ayllu.actors.memory.actors import memory_actors
from ayllu.bus.bus import local_bus
from ayllu.schemas import MemoryBankDocument, MemoryBankQuery
from ayllu.schemas.memory import SearchMode

from .topology import Place

ARTICLES = "package:gensim/test/test_data/lee.cor"
JUDGEMENTS = "package:gensim/test/test_data/similarities0-1.txt"
DEPTH = 10
MODES: tuple[SearchMode, ...] = ("vector", "text", "hybrid")


async def measure_retrieval(place: Place) -> dict[str, Any]:
    """Measure nDCG@10 of each mode; there is no chance in it."""
    texts = (await anyio.Path(locate(ARTICLES)).read_text("latin-1")).splitlines()
    lines = (await anyio.Path(locate(JUDGEMENTS)).read_text()).splitlines()
    above = [[float(value) for value in line.split()] for line in lines]
    # Each pair stands once, above the diagonal.
    gains = [
        [max(above[one][other], above[other][one]) for other in range(len(texts))]
        for one in range(len(texts))
    ]
    documents = [
        MemoryBankDocument(str(number), text.encode(), {}, "text/plain")
        for number, text in enumerate(texts)
    ]
    found: dict[str, float] = {}
    with TemporaryDirectory(dir=place.folder) as folder:
        async with (
            local_bus() as bus,
            build_embedder(default_embedders()[0]) as model,
            memory_actors(bus, Path(folder), {model.name: model}, model.name) as actors,
        ):
            await actors.banks.create("lee", "lee", documents)
            await (
                actors.replica.current()
            )  # What is acknowledged stands in the log, and is read from there.
            bank = actors.replica.bank("lee")
            for mode in MODES:
                queries = [
                    MemoryBankQuery(text=text, k=len(texts), mode=mode, include_documents=False)
                    for text in texts
                ]
                results = await actors.documents.search(bank, queries)
                scores = []
                for number, result in enumerate(results):
                    ranking = dict.fromkeys(int(match.document_uuid) for match in result.matches)
                    ranking.pop(number, None)
                    others = gains[number][:number] + gains[number][number + 1 :]
                    scores.append(ndcg([gains[number][other] for other in ranking], others))
                found[mode] = mean(scores)
    return {
        "ndcg_at_10": found,
        "documents": len(texts),
        "judgements": len(texts) * (len(texts) - 1) // 2,
    }


def ndcg(ranked: Sequence[float], all_gains: Sequence[float]) -> float:
    """Return the normalised discounted cumulative gain of a ranking's first `DEPTH` (Järvelin and Kekäläinen, 2002).

    Args:
        ranked: the gains of what was found, best first.
        all_gains: the gains of all that could be found.
    """
    return _dcg(ranked) / _dcg(sorted(all_gains, reverse=True))


def _dcg(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains[:DEPTH], 1))


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    return [
        (f"nDCG@{DEPTH}, {mode}", f"{value:.3f}") for mode, value in result["ndcg_at_10"].items()
    ]
