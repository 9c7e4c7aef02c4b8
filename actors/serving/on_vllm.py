"""What was trained, on bases of vLLM: adapters on the base's running engine, and folders that engines of their own run."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio.to_thread
from msgspec.structs import replace

from ...schemas import EngineDead, EngineError, InvalidRequest, Unavailable
from ..attachments.settings import AttachmentsConfig
from ..engines.engine import InferenceEngine
from ..engines.settings import VllmSettings
from ..engines.vllm.engine import VllmAdapter, VllmEngine
from ..inference import ATTACHMENTS, InferenceActor
from ..registry import ModelSpec
from .adapter import must_merge, read_config
from .bases import Digests
from .convert import Conversion
from .folders import CONFIG, DATA, weight_files
from .records import Version
from .running_engines import RunningEngines, watched
from .served import ActorOf, Loading
from .sources import Source

log = logging.getLogger(__name__)

Build = Callable[[ModelSpec], InferenceEngine]


class OnVllm:
    """Serves on vLLM; see `OnEngine`.

    Args:
        digests: of the bases' files.
        engines: the bases' engines in this worker.
        build: makes an engine of what was merged.
        attachments: what those of a request may cost, and from where they may come.
    """

    suffix = ""
    reads = (".safetensors", *DATA)

    def __init__(
        self,
        digests: Digests,
        engines: RunningEngines,
        build: Build,
        attachments: AttachmentsConfig = ATTACHMENTS,
    ) -> None:
        self._digests = digests
        self._attachments = attachments
        self._engines = engines
        self._build = build

    async def base(self, spec: ModelSpec) -> tuple[Path, str]:
        """Return a model's folder, and the digest of its weights and its configuration."""
        folder = Path(spec.source)
        files = [*await anyio.to_thread.run_sync(weight_files, folder), folder / CONFIG]
        try:
            return folder, await self._digests.of_files(files)
        except OSError as error:
            raise InvalidRequest(f"the base {spec.name!r} cannot be read") from error

    async def conversion(self, spec: ModelSpec, source: Source) -> Conversion:
        """Return what a checkpoint becomes."""
        return await anyio.to_thread.run_sync(_conversion, _settings(spec), source)

    async def applies(self, spec: ModelSpec, adapter: Path) -> bool:
        """Tell whether the base's engine takes an adapter: it is loaded once.

        Raises:
            Unavailable: the engine does not run now.
        """
        self._engines.check(spec.name)
        try:
            async with self._applied(spec, adapter, "a new adapter"):
                return True
        except EngineError as error:
            log.info("an adapter on %s is merged: %s", spec.name, error.message)
            return False

    def loading(self, spec: ModelSpec, made: Path, name: str, version: Version) -> Loading:
        """Return what loads a version.

        Raises:
            Unavailable: the base's engine does not run now, which an adapter needs.
            InvalidRequest: the base takes no adapters any more.
        """
        if version.served != "adapter":
            return partial(self._model, spec, made, name)
        if not _settings(spec).adapters:
            raise InvalidRequest(
                f"the base {spec.name!r} takes no adapters any more: register it anew"
            )
        self._engines.check(spec.name)
        return partial(self._adapter, spec, made, name)

    @asynccontextmanager
    async def _adapter(self, spec: ModelSpec, folder: Path, name: str) -> AsyncGenerator[ActorOf]:
        async with self._applied(spec, folder, name) as engine:
            yield partial(_actor, engine, name, spec.waiting, self._attachments)

    @asynccontextmanager
    async def _applied(
        self, spec: ModelSpec, folder: Path, name: str
    ) -> AsyncGenerator[InferenceEngine]:
        async with self._engines.using(spec.name) as base:
            assert isinstance(base, VllmEngine)
            # vLLM takes two of one name for the same: those of two versions, and what it remembers of each.
            adapter = VllmAdapter(base, f"{name} {folder.name}", folder)
            try:
                async with adapter:
                    yield adapter
            except EngineDead as error:
                raise Unavailable(f"the engine of {spec.name!r} died: try again later") from error
            except EngineError as error:
                message = error.message.replace(str(folder), "its folder")
                raise EngineError(message) from error

    @asynccontextmanager
    async def _model(self, spec: ModelSpec, folder: Path, name: str) -> AsyncGenerator[ActorOf]:
        settings = replace(_settings(spec), adapters=0)
        own = replace(spec, source=str(folder), vllm=settings)
        async with self._build(own) as engine, watched(engine):
            yield partial(_actor, engine, name, spec.waiting, self._attachments)


def _settings(spec: ModelSpec) -> VllmSettings:
    return spec.vllm or VllmSettings()


def _conversion(settings: VllmSettings, source: Source) -> Conversion:
    if source.kind == "model":
        return "model"
    config = read_config(source.folder, whole=True)
    if source.merge or not settings.adapters or config.r > settings.max_lora_rank:
        return "merge"
    return "merge" if must_merge(source.folder, whole=True) else "adapter"


def _actor(
    engine: InferenceEngine,
    name: str,
    waiting: int,
    attachments: AttachmentsConfig,
    version: Version,
) -> InferenceActor:
    return InferenceActor(
        engine,
        name,
        base=version.base,
        version=version.version,
        waiting=waiting,
        attachments=attachments,
    )
