"""The Embeddings API (extension): vectors of texts."""

from __future__ import annotations

from typing import Annotated, Protocol

from msgspec import Meta

from .content import ModelName
from .webmethod import webmethod
from .wire import Reply, Wire

MAX_INPUTS = 512


class EmbeddingsRequest(Wire, frozen=True):
    """Texts that become vectors."""

    model: ModelName
    input: Annotated[
        list[str],
        Meta(
            min_length=1,
            max_length=MAX_INPUTS,
            description="Texts, none longer than the model reads (`context` in the list of models).",
        ),
    ]


class EmbeddingsResponse(Reply, frozen=True):
    """The vectors, in the order of the texts."""

    model: str
    embeddings: Annotated[
        list[list[float]], Meta(description="A vector of length 1 for each text.")
    ]
    prompt_tokens: Annotated[int, Meta(description="How many tokens the texts have.")]


class Embeddings(Protocol):
    """Make vectors of texts."""

    @webmethod(route="/embeddings", routed_by="model")
    async def embeddings(self, request: EmbeddingsRequest) -> EmbeddingsResponse:
        """Return the vectors of texts; the cosine of two tells how near their meanings are."""
        ...
