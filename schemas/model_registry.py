"""The model registry (extension): what was trained becomes a model that can be asked, and stays one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated, Literal, Protocol

from msgspec import Meta

from .content import URL, ModelName
from .webmethod import webmethod
from .wire import Reply, Wire


class RegisterModelRequest(Wire, frozen=True):
    """Request to serve a checkpoint as a model: that of a job, or one in a folder."""

    name: Annotated[ModelName, Meta(description="What requests will call it.")]
    job_uuid: str | None = None
    iters: Annotated[
        int | None, Meta(description="Which checkpoint of the job; its last one where absent.")
    ] = None
    url: Annotated[
        URL | None, Meta(description="A checkpoint's folder under the configured roots.")
    ] = None
    base: Annotated[
        ModelName | None,
        Meta(
            description="The served model that the folder's weights were trained from; a job knows it."
        ),
    ] = None


class ModelVersion(Reply, frozen=True):
    """A version of a registered model."""

    version: int
    url: URL
    base: str
    kind: Annotated[
        Literal["adapter", "model", "reward"],
        Meta(
            description="Served as an adapter on its base, merged into weights of its own, or as a reward model."
        ),
    ]
    job_uuid: str | None = None
    iters: int | None = None
    registered_at: datetime | None = None


class RegisteredModel(Reply, frozen=True):
    """A registered model: its versions, and the one that is served."""

    name: str
    current: int
    versions: list[ModelVersion]


class ModelRegistry(Protocol):
    """Serve what was trained, without a restart of anything."""

    @webmethod(route="/models/register", api="Models", timeout=3600)
    async def register(self, request: RegisterModelRequest) -> RegisteredModel:
        """Serve a checkpoint under a name; a name that is registered gets a new version, and goes over to it once it is loaded."""
        ...

    @webmethod(route="/models/unregister", method="DELETE", api="Models")
    async def unregister(self, name: str) -> None:
        """Serve a registered model no more, and forget its versions."""
        ...

    @webmethod(route="/models/registered", method="GET", api="Models")
    def registered(self) -> AsyncIterator[RegisteredModel]:
        """List the registered models."""
        ...

    @webmethod(route="/models/rollback", api="Models")
    async def rollback(self, name: str, version: int | None = None) -> RegisteredModel:
        """Serve an earlier version again: the one before the current one, or the one that is named."""
        ...
