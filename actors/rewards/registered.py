"""Registered reward models: checkpoints of training as they are, on classifier engines, in the workers that serve rewards."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio.to_thread

from ...bus.bus import Bus
from ...bus.service import Drain
from ...schemas import Conflict, InvalidRequest, RegisteredModel, RegisterModelRequest
from ..serving.adapter import CONFIG as ADAPTER_CONFIG
from ..serving.bases import file_digest
from ..serving.cache import checkpoint_digests
from ..serving.host import ModelHost
from ..serving.opening import open_sources
from ..serving.records import Version, new_version, open_records
from ..serving.registrar import Registrar
from ..serving.rewards import RegisteredRewards
from ..serving.served import ActorOf, Loading
from ..serving.settings import ServingConfig
from ..serving.sources import Source, Sources
from ..training.protocol import BaseModel
from ..training.settings import Trainables
from .actor import RewardScoringActor
from .classifier.engine import ClassifierEngine

READ = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""The files that the scores of a model depend on."""
_FORMAT = 1


class RewardModels:
    """How registered reward models are served, see `Kind`: from the folders of their checkpoints, which stay where they are.

    Args:
        trainables: the weights that adapters stand on.
        sources: finds checkpoints.
        taken: the names of the configured reward models.
        device: what they run on.
    """

    def __init__(
        self, trainables: Trainables, sources: Sources, taken: Collection[str], device: str
    ) -> None:
        self._trainables = trainables
        self._sources = sources
        self._taken = frozenset(taken)
        self._device = device
        # The version that was made here just now: nobody needs to read all of it again.
        self._looked_at = ""

    def check_name(self, name: str) -> None:
        """Refuse the name of a configured reward model."""
        if name in self._taken:
            raise Conflict(f"{name!r} is the name of a configured reward model")

    def takes(self, version: Version) -> bool:
        """Tell whether a version is a reward model."""
        return version.served == "reward"

    async def version_of(self, source: Source) -> Version:
        """Return a checkpoint as a version; see `Kind.version_of`.

        Raises:
            ModelNotFound: its base is not known here.
            InvalidRequest: the weights of its base are not there.
        """
        base = self._base_of(source.folder, source.base)
        key, digest = await anyio.to_thread.run_sync(_key, source.folder, base)
        name = base.name if base else source.base
        version = new_version(source, base=name, base_digest=digest, key=key, served="reward")
        self._looked_at = version.id
        return version

    async def loading(self, name: str, version: Version) -> Loading:
        """Return what loads a version, if its checkpoint is still what was registered; see `Kind.loading`."""
        folder = self._sources.folder(version.url)
        base = self._base_of(folder, version.base)
        if version.id != self._looked_at:
            await self._check(folder, base, version)
        return partial(_loaded, folder, base, name, self._device)

    async def _check(self, folder: Path, base: BaseModel | None, version: Version) -> None:
        key, digest = await anyio.to_thread.run_sync(_key, folder, base)
        if digest != version.base_digest:
            raise InvalidRequest(f"the base {version.base!r} has other weights by now: train anew")
        if key != version.key:
            raise InvalidRequest(f"{folder.name} is not any more what was registered")

    def _base_of(self, folder: Path, name: str) -> BaseModel | None:
        """Return what a checkpoint stands on; None of whole weights."""
        adapter = (folder / ADAPTER_CONFIG).is_file()
        return self._trainables.find(name) if adapter else None

    def remove(self, keys: Collection[str]) -> None:
        """Nothing was made for a version: its checkpoint is a job's."""

    def sweep(self, keys: Collection[str]) -> None:
        """Nothing is left of anybody."""


def _key(folder: Path, base: BaseModel | None) -> tuple[str, str]:
    """Return the digest of all that a model is made of, and that of the base; reads all of it."""
    digest = _base_digest(base) if base else ""
    lines = [f"reward {_FORMAT} {digest}", *checkpoint_digests(folder, READ)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest(), digest


def _base_digest(base: BaseModel) -> str:
    if base.gguf is not None:
        return file_digest(Path(base.gguf))
    lines = checkpoint_digests(Path(base.weights))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@asynccontextmanager
async def _loaded(
    folder: Path, base: BaseModel | None, name: str, device: str
) -> AsyncGenerator[ActorOf]:
    async with ClassifierEngine(folder, base=base, device=device) as engine:
        yield lambda version: RewardScoringActor(
            engine, name, base=version.base or None, version=version.version
        )


class RegisteredRewardsActor(RegisteredRewards):
    """Registers reward models where they are served, for a registry that took the call of a client.

    Args:
        registrar: registers them.
        kind: how they are served here.
        sources: finds checkpoints.
    """

    service_name = "registered-rewards"

    def __init__(self, registrar: Registrar, kind: RewardModels, sources: Sources) -> None:
        self._registrar = registrar
        self._kind = kind
        self._sources = sources

    async def register(self, request: RegisterModelRequest) -> RegisteredModel:
        """Serve a checkpoint as a reward model; see `ModelRegistry.register`.

        Raises:
            AylluError: it cannot be served; what was served goes on.
        """
        self._kind.check_name(request.name)
        source = await self._sources.find(request)
        if source.kind != "reward":
            raise InvalidRequest(f"{source.folder.name} is no reward model")
        return await self._registrar.add(request.name, source)

    async def rollback(self, name: str, version: int | None = None) -> RegisteredModel:
        """Serve an earlier version again; see `ModelRegistry.rollback`."""
        return await self._registrar.choose(name, version)

    async def unregister(self, name: str) -> None:
        """Serve a reward model no more; see `ModelRegistry.unregister`."""
        await self._registrar.forget(name)


async def open_registered(
    bus: Bus,
    data_dir: Path,
    trainables: Trainables,
    taken: Collection[str],
    config: ServingConfig,
    *,
    drain: Drain | None = None,
) -> tuple[RegisteredRewardsActor, ModelHost]:
    """Return what registers reward models here, and the host that serves them; both are to be run.

    Args:
        bus: the bus.
        data_dir: trainers of this machine keep checkpoints below it.
        trainables: the weights that adapters stand on.
        taken: the names of the configured reward models.
        config: the limits.
        drain: how long running calls may go on when the worker ends.
    """
    records = await open_records(bus)
    sources = open_sources(bus, data_dir, config)
    kind = RewardModels(trainables, sources, taken, config.reward_device)
    host = ModelHost(bus, records, kind, config.drain_seconds, drain)
    registrar = Registrar(records, host, config.versions)
    return RegisteredRewardsActor(registrar, kind, sources), host
