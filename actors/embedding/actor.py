"""The embedding actor: an embedding model on the bus."""

from __future__ import annotations

from typing import Any

import anyio

from ...schemas import Embeddings, EmbeddingsRequest, EmbeddingsResponse, Model, encode
from .embedder import Embedder


class EmbeddingActor(Embeddings):
    """Makes vectors of texts with one model.

    Args:
        embedder: the model, open; whoever owns it closes it.
    """

    service_name = "embedding"

    def __init__(self, embedder: Embedder) -> None:
        self.models = frozenset((embedder.name,))
        described = Model(
            name=embedder.name,
            engine="onnx",
            context=embedder.max_tokens,
            capabilities=["embeddings"],
            kind="embedding",
        )
        self.service_metadata = {"models": encode([described]).decode()}
        self._embedder = embedder
        self._prompt_tokens = 0

    def service_stats(self) -> dict[str, Any]:
        """Return the tokens of all texts."""
        return {"model": self._embedder.name, "prompt_tokens": self._prompt_tokens}

    async def embeddings(self, request: EmbeddingsRequest) -> EmbeddingsResponse:
        """Return the vectors of texts; see `Embeddings.embeddings`.

        Raises:
            InvalidRequest: a text is too long for the model; the message says which.
        """
        vectors = await self._embedder.embed(request.input)
        counted = await anyio.to_thread.run_sync(self._embedder.count_tokens, request.input)
        self._prompt_tokens += sum(counted)
        return EmbeddingsResponse(
            model=self._embedder.name,
            embeddings=vectors.tolist(),
            prompt_tokens=sum(counted),
        )
