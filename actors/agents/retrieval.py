"""Looking into an agent's memory banks."""

from __future__ import annotations

import time
from functools import partial

from ...bus.bus import Bus
from ...bus.client import client
from ...schemas import MemoryBankDocument, MemoryBankDocuments, MemoryBankQuery
from ..patience import persistently
from .history import question_of, within_budget
from .records import Retrieved
from .turn import Turn

MAX_QUESTION = 10_000
"""Characters of what the user said that are looked for: what a query takes, and more than a model of embeddings reads."""


async def retrieved(bus: Bus, turn: Turn) -> Retrieved:
    """Return what an agent's banks have on what the user said, as much as the agent's budget allows.

    Raises:
        AylluError: a bank is gone, or cannot be asked for long.
    """
    config = turn.opening.agent.config
    wanted = config.retrieval
    query = MemoryBankQuery(
        text=question_of(turn.opening.messages)[:MAX_QUESTION],
        k=wanted.k,
        filter=wanted.filter,
        mode=wanted.mode,
        min_score=wanted.min_score,
    )
    documents: list[MemoryBankDocument] = []
    scores: list[float] = []
    for bank in config.memory_bank_uuids:
        found = await persistently(partial(passages, bus, bank, query))
        documents += [document for document, _ in found]
        scores += [score for _, score in found]
    kept, values = within_budget(documents, scores, wanted.max_tokens)
    return Retrieved(at=time.time(), documents=kept, scores=values)


async def passages(
    bus: Bus, bank: str, query: MemoryBankQuery
) -> list[tuple[MemoryBankDocument, float]]:
    """Return what a bank has on a question: documents as far as the model sees them, the passages that were found."""
    found: list[tuple[MemoryBankDocument, float]] = []
    async for result in client(MemoryBankDocuments, bus).query(bank, [query]):
        whole = {document.uuid: document for document in result.documents}
        for match in result.matches:
            source = whole[match.document_uuid]
            passage = MemoryBankDocument(
                source.uuid, match.chunk.encode(), source.metadata, "text/plain"
            )
            found.append((passage, match.score))
    return found
