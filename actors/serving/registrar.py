"""Versions of registered models: added, made the current one, forgotten; each change is loaded before it is kept."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from ...schemas import Conflict, NotFound, RegisteredModel
from .host import ModelHost
from .records import ModelRecord, Records, Version
from .sources import Source

Kept = Callable[[ModelRecord | None], ModelRecord]
"""A change after which the model is still registered."""


class Registrar:
    """Registers models of the kind that a host serves, and serves them there at once; other workers follow.

    Args:
        records: what is registered.
        host: serves them here.
        versions: how many versions of a model are kept; the oldest go first.
    """

    def __init__(self, records: Records, host: ModelHost, versions: int) -> None:
        self.kind = host.kind
        self._records = records
        self._host = host
        self._versions = versions

    async def add(self, name: str, source: Source) -> RegisteredModel:
        """Make a checkpoint the newest version of a model, and its current one.

        Raises:
            AylluError: it cannot be served; what was served goes on.
        """
        version = await self.kind.version_of(source)

        def change(record: ModelRecord | None) -> ModelRecord:
            if record is not None and not self.kind.takes(record.served):
                raise Conflict(f"{name!r} is a model of another kind: unregister that first")
            known = record.versions if record else []
            number = 1 + max((one.version for one in known), default=0)
            versions = [*known, replace(version, version=number)]
            return ModelRecord(name, number, versions[-self._versions :])

        return await self._serve(name, version, change)

    async def choose(self, name: str, version: int | None) -> RegisteredModel:
        """Make an earlier version the current one: the one before it, or the one that has a number.

        Raises:
            NotFound: none of this name is registered, or it has no such version.
            Conflict: there is no earlier version, or it was forgotten meanwhile.
            AylluError: it cannot be loaded; what was served goes on.
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

    async def forget(self, name: str) -> None:
        """Serve a model no more, and forget its versions.

        Raises:
            NotFound: none of this name is registered.
        """
        before = await self._keys()

        def change(record: ModelRecord | None) -> None:
            if record is None:
                raise NotFound(f"no model {name!r} is registered")

        await self._records.change(name, change)
        await self._host.drop(name)
        await self._remove(before)

    async def _serve(self, name: str, version: Version, change: Kept) -> RegisteredModel:
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
        await self._remove(before)
        return record.described()

    async def _keys(self) -> set[str]:
        return {one.key for record in await self._records.all() for one in record.versions}

    async def _remove(self, before: set[str]) -> None:
        """Remove the files that nothing refers to any more."""
        self.kind.remove(before - await self._keys())


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
