"""Registered language models: what was made of checkpoints, on the engines of their bases."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import anyio.to_thread

from ...schemas import InvalidRequest
from ..registry import ModelSpec
from .bases import Bases
from .cache import ModelCache
from .convert import Conversion
from .records import Served, Version, new_version
from .served import Loading
from .sources import Source, Sources, look_at


class OnEngine(Protocol):
    """How what was trained is served on bases of one engine."""

    @property
    def suffix(self) -> str:
        """What the name ends in of what is made of a checkpoint: a file, or a folder."""
        ...

    @property
    def reads(self) -> Collection[str]:
        """The kinds of files of a checkpoint that count."""
        ...

    async def base(self, spec: ModelSpec) -> tuple[Path, str]:
        """Return where a base's weights are, and their digest, which is computed once.

        Raises:
            InvalidRequest: they are not there.
        """
        ...

    async def conversion(self, spec: ModelSpec, source: Source) -> Conversion:
        """Return what a checkpoint becomes; reads no weights.

        Raises:
            InvalidRequest: something is missing or damaged.
            Unsupported: it needs something that cannot be served.
        """
        ...

    async def applies(self, spec: ModelSpec, adapter: Path) -> bool:
        """Tell whether the engine can apply an adapter that was made; else it is to be merged.

        Raises:
            Unavailable: the engine is needed for that, and does not run now.
        """
        ...

    def loading(self, spec: ModelSpec, made: Path, name: str, version: Version) -> Loading:
        """Return what loads a version of what was made.

        Raises:
            AylluError: it cannot be loaded now.
        """
        ...


class LanguageModels:
    """How registered language models are served, see `Kind`: those whose bases are configured here.

    Args:
        bases: the configured models.
        engines: how they are served on the engines of those.
        cache: where files are made of checkpoints.
        sources: finds checkpoints.
    """

    def __init__(
        self, bases: Bases, engines: Mapping[str, OnEngine], cache: ModelCache, sources: Sources
    ) -> None:
        self._bases = bases
        self._engines = engines
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
        spec = self._bases.find(source.base)
        engine = self._engines[spec.engine]
        base, digest = await engine.base(spec)
        conversion = await engine.conversion(spec, source)
        while True:
            key = await self._cache.key(source.folder, digest, conversion, engine.reads)
            made = self._cache.place(key, engine.suffix)
            await self._cache.make(made, source.folder, base, conversion)
            if conversion != "adapter" or await engine.applies(spec, made):
                break
            conversion = "merge"
        served: Served = "adapter" if conversion == "adapter" else "model"
        return new_version(
            source,
            base=spec.name,
            base_digest=digest,
            key=key,
            served=served,
            conversion=conversion,
        )

    async def loading(self, name: str, version: Version) -> Loading:
        """Return what loads a version; its file is made anew where it is gone; see `Kind.loading`."""
        spec = self._bases.find(version.base)
        engine = self._engines[spec.engine]
        base, digest = await engine.base(spec)
        if version.served == "adapter" and digest != version.base_digest:
            raise InvalidRequest(f"the base {version.base!r} has other weights by now: train anew")
        made = self._cache.place(version.key, engine.suffix)
        if not await anyio.Path(made).exists():
            await self._make_again(version, engine, base, digest, made)
        return engine.loading(spec, made, name, version)

    async def _make_again(
        self, version: Version, engine: OnEngine, base: Path, digest: str, made: Path
    ) -> None:
        assert version.conversion is not None
        folder = self._sources.folder(version.url)
        await anyio.to_thread.run_sync(look_at, folder, version.base)
        key = await self._cache.key(folder, digest, version.conversion, engine.reads)
        if key != version.key:
            raise InvalidRequest(f"{folder.name}, or its base, is not any more what was registered")
        await self._cache.make(made, folder, base, version.conversion)

    def remove(self, keys: Collection[str]) -> None:
        """Remove the files of versions that are no more."""
        self._cache.remove(keys)

    def sweep(self, keys: Collection[str]) -> None:
        """Remove the files that nobody refers to any more."""
        self._cache.sweep(keys)
