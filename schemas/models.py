"""The Models API (extension): which models can be asked now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from .webmethod import webmethod
from .wire import Reply


class Model(Reply, frozen=True):
    """A model that a live actor serves.

    Attributes:
        name: what requests call it.
        aliases: other names for it.
        engine: what runs it, for example ``llama_cpp``.
        context: the longest prompt and answer together, in tokens.
        capabilities: what the engine can do beyond plain text, for example ``json_schema``, ``logprobs``, ``images``.
        actors: how many actors serve it.
    """

    name: str
    engine: str
    context: int
    aliases: list[str] = []
    capabilities: list[str] = []
    actors: int = 1


class Models(Protocol):
    """See what is served."""

    @webmethod(route="/models", method="GET", timeout=10)
    def models(self) -> AsyncIterator[Model]:
        """List the models that live actors serve."""
        ...
