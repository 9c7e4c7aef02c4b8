"""What a registry asks of the workers that serve reward models. It is no API of clients: only the bus knows it."""

from __future__ import annotations

from typing import Protocol

from ...schemas import RegisteredModel, RegisterModelRequest
from ...schemas.webmethod import webmethod


class RegisteredRewards(Protocol):
    """Register reward models where they are served; each as the operation of `ModelRegistry` of that name."""

    @webmethod(route="/models/rewards/register", timeout=3600)
    async def register(self, request: RegisterModelRequest) -> RegisteredModel:
        """Serve a checkpoint as a reward model; its name was found to be free."""
        ...

    @webmethod(route="/models/rewards/rollback", timeout=3600)
    async def rollback(self, name: str, version: int | None = None) -> RegisteredModel:
        """Serve an earlier version of a reward model again."""
        ...

    @webmethod(route="/models/rewards/unregister", method="DELETE")
    async def unregister(self, name: str) -> None:
        """Serve a reward model no more."""
        ...
