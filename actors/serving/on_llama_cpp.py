"""What was trained, on bases of llama.cpp: GGUF adapters on the base's file, and GGUF files of their own; each an engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio.to_thread

from ..attachments.settings import AttachmentsConfig
from ..files import locate
from ..inference import ATTACHMENTS, InferenceActor
from ..registry import ModelSpec, build_trained
from .adapter import must_merge
from .bases import Digests
from .cache import CONVERTED
from .convert import Conversion
from .records import Version
from .served import ActorOf, Loading
from .sources import Source


class OnLlamaCpp:
    """Serves on llama.cpp; see `OnEngine`.

    Args:
        digests: of the bases' files.
        attachments: what those of a request may cost, and from where they may come.
    """

    suffix = ".gguf"
    reads = CONVERTED

    def __init__(self, digests: Digests, attachments: AttachmentsConfig = ATTACHMENTS) -> None:
        self._digests = digests
        self._attachments = attachments

    async def base(self, spec: ModelSpec) -> tuple[Path, str]:
        """Return a model's file and its digest."""
        path = locate(spec.source)
        return path, await self._digests.of_file(path)

    async def conversion(self, spec: ModelSpec, source: Source) -> Conversion:  # noqa: ARG002
        """Return what a checkpoint becomes."""
        return await anyio.to_thread.run_sync(_conversion, source)

    async def applies(self, spec: ModelSpec, adapter: Path) -> bool:  # noqa: ARG002
        """Any adapter that was converted can be applied."""
        return True

    def loading(self, spec: ModelSpec, made: Path, name: str, version: Version) -> Loading:
        """Return what loads a version."""
        return partial(_loaded, spec, made, name, version.served == "adapter", self._attachments)


def _conversion(source: Source) -> Conversion:
    if source.kind == "model":
        return "model"
    return "merge" if must_merge(source.folder) or source.merge else "adapter"


@asynccontextmanager
async def _loaded(
    spec: ModelSpec, file: Path, name: str, adapter: bool, attachments: AttachmentsConfig
) -> AsyncGenerator[ActorOf]:
    async with build_trained(spec, file, adapter=adapter) as engine:
        yield lambda version: InferenceActor(
            engine,
            name,
            base=version.base,
            version=version.version,
            waiting=spec.waiting,
            attachments=attachments,
        )
