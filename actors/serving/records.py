"""What is kept of registered models: a record each, changed by compare-and-set."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal
from uuid import uuid4

import msgspec

from ...bus.bus import Bus
from ...bus.durable import KeyValue
from ...bus.subjects import ROOT
from ...schemas import (
    BusError,
    Conflict,
    ModelVersion,
    NotFound,
    RegisteredModel,
    decode,
    encode,
)
from .convert import Conversion
from .sources import Source

BUCKET = "models"
CHANGED = f"{ROOT}.signal.models"
"""The subject on which hosts hear that there is something to look at; live, not stored."""
CHANGES = 100
"""How often a change is tried while others change the same model."""

Served = Literal["adapter", "model", "reward"]


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a model.

    Attributes:
        id: of this registration alone: another one never has it, whatever its number is.
        version: its number, counted from 1.
        url: the folder of its checkpoint.
        base: the model that it stands on; of a reward model with weights of its own, what it was made of, if that is known.
        base_digest: the digest of the weights of what it stands on.
        conversion: what is made of its checkpoint; None of a reward model, of which nothing is.
        key: the digest of all that it is made of, and the name of what was made, in the cache.
        served: as an adapter on its base, as weights of its own, or as a reward model.
        registered_at: when.
        job: whose checkpoint it is.
        iters: which one of it.
    """

    id: str
    version: int
    url: str
    base: str
    base_digest: str
    conversion: Conversion | None
    key: str
    served: Served
    registered_at: datetime
    job: str | None = None
    iters: int | None = None


def new_version(
    source: Source,
    *,
    base: str,
    base_digest: str,
    key: str,
    served: Served,
    conversion: Conversion | None = None,
) -> Version:
    """Return a checkpoint as a version that is not kept yet; its number is known when it is."""
    return Version(
        id=uuid4().hex,
        version=0,
        url=source.folder.as_uri(),
        base=base,
        base_digest=base_digest,
        conversion=conversion,
        key=key,
        served=served,
        registered_at=datetime.now(UTC),
        job=source.job,
        iters=source.iters,
    )


class ModelRecord(msgspec.Struct, frozen=True):
    """A registered model: its versions, the oldest first, and the number of the one that is served."""

    name: str
    current: int
    versions: list[Version]

    @property
    def served(self) -> Version:
        """The version that is served."""
        return next(one for one in self.versions if one.version == self.current)

    def described(self) -> RegisteredModel:
        """Return it as clients see it."""
        return RegisteredModel(
            self.name,
            self.current,
            [
                ModelVersion(
                    one.version,
                    one.url,
                    one.base,
                    one.served,
                    job_uuid=one.job,
                    iters=one.iters,
                    registered_at=one.registered_at,
                )
                for one in self.versions
            ],
        )


Change = Callable[[ModelRecord | None], ModelRecord | None]


class Records:
    """The registered models of a deployment. Opened by `open_records`."""

    def __init__(self, bus: Bus, values: KeyValue) -> None:
        self._bus = bus
        self._values = values

    async def all(self) -> list[ModelRecord]:
        """Return all registered models, by name."""
        found = []
        for name in await self._values.keys():
            entry = await self._values.get(name)
            if entry is not None:
                found.append(decode(entry.value, ModelRecord))
        return found

    async def get(self, name: str) -> ModelRecord:
        """Return a model.

        Raises:
            NotFound: none of this name is registered.
        """
        entry = await self._values.get(name)
        if entry is None:
            raise NotFound(f"no model {name!r} is registered")
        return decode(entry.value, ModelRecord)

    async def change(self, name: str, change: Change) -> ModelRecord | None:
        """Change a model as it stands now, and let hosts know; None is none.

        Raises:
            AylluError: what ``change`` raised; the model is as it was.
            BusError: no answer; whether it was changed is not known.
        """
        for _ in range(CHANGES):
            entry = await self._values.get(name)
            changed = change(None if entry is None else decode(entry.value, ModelRecord))
            try:
                if changed is None:
                    if entry is not None:
                        await self._values.delete(name, revision=entry.revision)
                elif entry is None:
                    await self._values.create(name, encode(changed))
                else:
                    await self._values.update(name, encode(changed), revision=entry.revision)
            except Conflict:
                continue
            await self._bus.transport.publish(CHANGED, b"")
            return changed
        raise BusError(f"the model {name!r} is changed by too many")


async def open_records(bus: Bus) -> Records:
    """Return the registered models of a deployment; what keeps them is made where it is missing."""
    return Records(bus, await bus.storage.key_value(BUCKET))
