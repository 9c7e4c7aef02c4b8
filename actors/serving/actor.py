"""The model registry's actor: what was trained is served under a name, switched, rolled back, and served no more."""

from __future__ import annotations

from collections.abc import AsyncIterator

from ...bus.bus import Bus
from ...bus.client import client, served_models
from ...schemas import (
    Conflict,
    ModelRegistry,
    RegisteredModel,
    RegisterModelRequest,
    Unavailable,
)
from .records import ModelRecord, Records
from .registrar import Registrar
from .rewards import RegisteredRewards
from .sources import Sources


class ModelRegistryActor(ModelRegistry):
    """Registers models, and serves them at once: language models in its own worker, reward models in one that scores.

    Args:
        bus: the bus.
        records: what is registered.
        registrar: registers language models.
        sources: finds checkpoints.
        models: how many models may be registered.
    """

    service_name = "model-registry"

    def __init__(
        self, bus: Bus, records: Records, registrar: Registrar, sources: Sources, models: int
    ) -> None:
        self._bus = bus
        self._records = records
        self._kind = registrar.kind
        self._registrar = registrar
        self._sources = sources
        self._most = models
        self._rewards = client(RegisteredRewards, bus)

    async def register(self, request: RegisterModelRequest) -> RegisteredModel:
        """Serve a checkpoint under a name; see `ModelRegistry.register`.

        Raises:
            InvalidRequest: the checkpoint is damaged, holds what may be code, or does not fit its base.
            Unsupported: the checkpoint needs something that cannot be served.
            PermissionDenied: its folder is not where checkpoints may lie.
            NotFound: there is no such job, checkpoint, folder or base.
            Conflict: the name is that of another model, or there are as many as may be.
            Unavailable: it is a reward model, and no worker serves those.
            EngineError: it cannot be converted or loaded; what was served goes on.
        """
        await self._check_name(request.name)
        source = await self._sources.find(request)
        if source.kind != "reward":
            return await self._registrar.add(request.name, source)
        try:
            return await self._rewards.register(request)
        except Unavailable as error:
            raise _explained(error) from error

    async def _check_name(self, name: str) -> None:
        self._kind.check_name(name)
        for model in await served_models(self._bus):
            if model.version is None and name in (model.name, *model.aliases):
                raise Conflict(f"{name!r} is the name of a model that another worker serves")
        registered = await self._records.all()
        if name not in {one.name for one in registered} and len(registered) >= self._most:
            raise Conflict(
                f"{len(registered)} models are registered, as many as may be: unregister one, or "
                "raise serving.models"
            )

    async def unregister(self, name: str) -> None:
        """Serve a registered model no more, and forget its versions; see `ModelRegistry.unregister`.

        Raises:
            NotFound: none of this name is registered.
        """
        if self._is_language(await self._records.get(name)):
            await self._registrar.forget(name)
            return
        try:
            await self._rewards.unregister(name)
        except Unavailable:
            # Nobody serves it; so it is only forgotten.
            await self._registrar.forget(name)

    async def registered(self) -> AsyncIterator[RegisteredModel]:
        """List the registered models; see `ModelRegistry.registered`."""
        for record in await self._records.all():
            yield record.described()

    async def rollback(self, name: str, version: int | None = None) -> RegisteredModel:
        """Serve an earlier version again; see `ModelRegistry.rollback`.

        Raises:
            NotFound: none of this name is registered, or it has no such version.
            Conflict: there is no earlier version, or it was forgotten meanwhile.
            Unavailable: it is a reward model, and no worker serves those.
            EngineError: it cannot be loaded; what was served goes on.
        """
        if self._is_language(await self._records.get(name)):
            return await self._registrar.choose(name, version)
        try:
            return await self._rewards.rollback(name, version)
        except Unavailable as error:
            raise _explained(error) from error

    def _is_language(self, record: ModelRecord) -> bool:
        return self._kind.takes(record.served)


def _explained(error: Unavailable) -> Unavailable:
    """Return the error of a call that no worker took, as one that says which is missing."""
    if type(error) is not Unavailable:
        return error
    return Unavailable(
        "it is a reward model, and no worker serves those: nothing was changed (`ayllu worker rewards` runs one)"
    )
