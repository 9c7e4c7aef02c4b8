"""The model registry's actor: what was trained is served under a name, switched, rolled back, and served no more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from uuid import uuid4

from msgspec.structs import replace

from ...bus.client import served_models
from ...schemas import (
    Conflict,
    ModelRegistry,
    NotFound,
    RegisteredModel,
    RegisterModelRequest,
)
from .host import ModelHost, Shelf
from .records import ModelRecord, Version

Served = Callable[[ModelRecord | None], ModelRecord]
"""A change after which the model is still registered."""


class ModelRegistryActor(ModelRegistry):
    """Registers models, and serves them at once in its own worker; other workers follow.

    Args:
        shelf: where models come from.
        host: serves them here.
    """

    service_name = "model-registry"

    def __init__(self, shelf: Shelf, host: ModelHost) -> None:
        self._bus = shelf.bus
        self._records = shelf.records
        self._bases = shelf.bases
        self._cache = shelf.cache
        self._sources = shelf.sources
        self._config = shelf.config
        self._host = host

    async def register(self, request: RegisterModelRequest) -> RegisteredModel:
        """Serve a checkpoint under a name; see `ModelRegistry.register`.

        Raises:
            InvalidRequest: the checkpoint is damaged, holds what may be code, or does not fit its base.
            Unsupported: the checkpoint needs something that cannot be served.
            PermissionDenied: its folder is not where checkpoints may lie.
            NotFound: there is no such job, checkpoint, folder or base.
            Conflict: the name is that of another model, or there are as many as may be.
            EngineError: it was converted, but cannot be loaded; what was served goes on.
        """
        await self._check_name(request.name)
        source = await self._sources.find(request)
        spec = self._bases.find(source.base)
        path, digest = await self._bases.file(spec)
        key = await self._cache.key(source.folder, digest, source.conversion)
        await self._cache.make(key, source.folder, path, source.conversion)
        version = Version(
            id=uuid4().hex,
            version=0,  # Its number is known when it is stored.
            url=source.folder.as_uri(),
            base=spec.name,
            base_digest=digest,
            conversion=source.conversion,
            key=key,
            served="adapter" if source.conversion == "adapter" else "model",
            registered_at=datetime.now(UTC),
            job=source.job,
            iters=source.iters,
        )
        return await self._serve(request.name, version, self._added(request.name, version))

    async def _check_name(self, name: str) -> None:
        self._bases.check_name(name)
        for model in await served_models(self._bus):
            if model.version is None and name in (model.name, *model.aliases):
                raise Conflict(f"{name!r} is the name of a model that another worker serves")
        registered = await self._records.all()
        if name not in {one.name for one in registered} and len(registered) >= self._config.models:
            raise Conflict(
                f"{len(registered)} models are registered, as many as may be: unregister one, or "
                "raise serving.models"
            )

    def _added(self, name: str, version: Version) -> Served:
        def change(record: ModelRecord | None) -> ModelRecord:
            known = record.versions if record else []
            number = 1 + max((one.version for one in known), default=0)
            versions = [*known, replace(version, version=number)]
            return ModelRecord(name, number, versions[-self._config.versions :])

        return change

    async def _serve(self, name: str, version: Version, change: Served) -> RegisteredModel:
        """Load a version, make it the current one, switch to it: in this order, so that a failure changes nothing."""
        async with self._host.lock(name):
            before = await self._keys()
            loaded = await self._host.load(name, version)
            try:
                record = await self._records.change(name, change)
            except BaseException:
                loaded.discard()
                raise
            assert record is not None
            loaded.version = record.served
            await self._host.switch(loaded)
        await self._forget(before)
        return record.described()

    async def unregister(self, name: str) -> None:
        """Serve a registered model no more, and forget its versions; see `ModelRegistry.unregister`.

        Raises:
            NotFound: none of this name is registered.
        """
        before = await self._keys()

        def change(record: ModelRecord | None) -> None:
            if record is None:
                raise NotFound(f"no model {name!r} is registered")

        await self._records.change(name, change)
        await self._host.drop(name)
        await self._forget(before)

    async def registered(self) -> AsyncIterator[RegisteredModel]:
        """List the registered models; see `ModelRegistry.registered`."""
        for record in await self._records.all():
            yield record.described()

    async def rollback(self, name: str, version: int | None = None) -> RegisteredModel:
        """Serve an earlier version again; see `ModelRegistry.rollback`.

        Raises:
            NotFound: none of this name is registered, or it has no such version.
            Conflict: there is no earlier version, or it was forgotten meanwhile.
            EngineError: it cannot be loaded; what was served goes on.
        """
        record = await self._records.get(name)
        target = chosen(record, version)
        if target.version == record.current:
            return record.described()

        def change(now: ModelRecord | None) -> ModelRecord:
            if now is None or target not in now.versions:
                raise Conflict(f"version {target.version} of {name!r} was forgotten meanwhile")
            return replace(now, current=target.version)

        return await self._serve(name, target, change)

    async def _keys(self) -> set[str]:
        return {one.key for record in await self._records.all() for one in record.versions}

    async def _forget(self, before: set[str]) -> None:
        """Remove the files that nothing refers to any more."""
        self._cache.remove(before - await self._keys())


def chosen(record: ModelRecord, version: int | None) -> Version:
    """Return the version of a model that has a number, or the one before the current one.

    Raises:
        NotFound: there is none of this number.
        Conflict: there is none before the current one.
    """
    if version is None:
        earlier = [one for one in record.versions if one.version < record.current]
        if not earlier:
            raise Conflict(f"{record.name!r} has no version before {record.current}")
        return earlier[-1]
    for one in record.versions:
        if one.version == version:
            return one
    numbers = ", ".join(str(one.version) for one in record.versions)
    raise NotFound(f"{record.name!r} has no version {version}; it has {numbers}")
