"""Registered language models: checkpoints as GGUF files, on llama.cpp engines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio.to_thread

from ...schemas import InvalidRequest
from ..inference import InferenceActor
from ..registry import ModelSpec, build_trained
from .bases import Bases
from .cache import ModelCache
from .records import Served, Version, new_version
from .served import ActorOf, Loading
from .sources import Source, Sources, look_at


class LanguageModels:
    """How registered language models are served, see `Kind`: those whose bases are configured here.

    Args:
        bases: the configured models.
        cache: where files are made of checkpoints.
        sources: finds checkpoints.
    """

    def __init__(self, bases: Bases, cache: ModelCache, sources: Sources) -> None:
        self._bases = bases
        self._cache = cache
        self._sources = sources

    def check_name(self, name: str) -> None:
        """Refuse the name of a configured model."""
        self._bases.check_name(name)

    def takes(self, version: Version) -> bool:
        """Tell whether a version is a language model."""
        return version.served != "reward"

    async def version_of(self, source: Source) -> Version:
        """Return a checkpoint as a version, once it is converted; see `Kind.version_of`.

        Raises:
            InvalidRequest: the checkpoint is damaged, or does not fit its base.
            Unsupported: it needs something that cannot be served.
            ModelNotFound: its base is not served here.
            EngineError: the conversion died, or took too long.
        """
        assert source.conversion is not None
        spec = self._bases.find(source.base)
        path, digest = await self._bases.file(spec)
        key = await self._cache.key(source.folder, digest, source.conversion)
        await self._cache.make(key, source.folder, path, source.conversion)
        served: Served = "adapter" if source.conversion == "adapter" else "model"
        return new_version(source, base=spec.name, base_digest=digest, key=key, served=served)

    async def loading(self, name: str, version: Version) -> Loading:
        """Return what loads a version; its file is made anew where it is gone; see `Kind.loading`."""
        spec = self._bases.find(version.base)
        path, digest = await self._bases.file(spec)
        adapter = version.served == "adapter"
        if adapter and digest != version.base_digest:
            raise InvalidRequest(f"the base {version.base!r} has another file by now: train anew")
        file = self._cache.file(version.key)
        if not file.is_file():
            await self._make_again(version, path, digest)
        return partial(_loaded, spec, file, name, adapter)

    async def _make_again(self, version: Version, path: Path, digest: str) -> None:
        assert version.conversion is not None
        folder = self._sources.folder(version.url)
        await anyio.to_thread.run_sync(look_at, folder, version.base)
        key = await self._cache.key(folder, digest, version.conversion)
        if key != version.key:
            raise InvalidRequest(f"{folder.name}, or its base, is not any more what was registered")
        await self._cache.make(key, folder, path, version.conversion)

    def remove(self, keys: Collection[str]) -> None:
        """Remove the files of versions that are no more."""
        self._cache.remove(keys)

    def sweep(self, keys: Collection[str]) -> None:
        """Remove the files that nobody refers to any more."""
        self._cache.sweep(keys)


@asynccontextmanager
async def _loaded(spec: ModelSpec, file: Path, name: str, adapter: bool) -> AsyncGenerator[ActorOf]:
    async with build_trained(spec, file, adapter=adapter) as engine:
        yield lambda version: InferenceActor(
            engine, name, base=version.base, version=version.version
        )
