"""The Models API (extension): which models can be asked now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Literal, Protocol

from msgspec import Meta

from .webmethod import webmethod
from .wire import Reply


class Model(Reply, frozen=True):
    """A model that a live actor serves."""

    name: Annotated[str, Meta(description="What requests call it.")]
    engine: Annotated[str, Meta(description="What runs it, for example `llama_cpp`.")]
    context: Annotated[int, Meta(description="The longest prompt and answer together, in tokens.")]
    aliases: Annotated[list[str], Meta(description="Other names for it.")] = []
    capabilities: Annotated[
        list[str],
        Meta(
            description="What the engine can do beyond plain text: `json_schema`, `logprobs`, `images`..."
        ),
    ] = []
    prompt_price: Annotated[
        float, Meta(description="Cost units of a thousand tokens of prompts.")
    ] = 0.0
    completion_price: Annotated[
        float, Meta(description="Cost units of a thousand tokens of answers.")
    ] = 0.0
    kind: Annotated[
        Literal["language", "embedding", "reward"],
        Meta(
            description="`language` models answer, `embedding` models make vectors of texts, `reward` models score answers."
        ),
    ] = "language"
    actors: Annotated[int, Meta(description="How many actors serve it.")] = 1
    base: Annotated[
        str | None, Meta(description="The model that a registered one was trained from.")
    ] = None
    version: Annotated[
        int | None, Meta(description="Of a registered model; while it is switched, the newer one.")
    ] = None
    description: Annotated[str, Meta(description="Of a reward model: what its scores mean.")] = ""
    lowest_score: Annotated[
        float | None, Meta(description="Of a reward model; null is no limit.")
    ] = None
    highest_score: Annotated[
        float | None, Meta(description="Of a reward model; null is no limit.")
    ] = None


class Models(Protocol):
    """See what is served."""

    @webmethod(route="/models", method="GET", timeout=10)
    def models(self) -> AsyncIterator[Model]:
        """List the models that live actors serve."""
        ...
