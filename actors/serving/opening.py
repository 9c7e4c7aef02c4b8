"""What a worker needs to serve registered models, put together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...bus.bus import Bus
from ...bus.service import Drain
from ..attachments.settings import AttachmentsConfig
from ..inference import ATTACHMENTS
from ..registry import ModelSpec, build_engine
from .actor import ModelRegistryActor
from .bases import Bases, Digests
from .cache import ModelCache
from .host import ModelHost
from .language import LanguageModels, OnEngine
from .on_llama_cpp import OnLlamaCpp
from .on_vllm import Build, OnVllm
from .records import open_records
from .registrar import Registrar
from .running_engines import RunningEngines
from .settings import ServingConfig
from .sources import Sources


async def open_serving(
    bus: Bus,
    data_dir: Path,
    models: Sequence[ModelSpec],
    config: ServingConfig,
    running: RunningEngines,
    *,
    build: Build = build_engine,
    attachments: AttachmentsConfig = ATTACHMENTS,
    drain: Drain | None = None,
) -> tuple[ModelRegistryActor, ModelHost]:
    """Return the registry's actor, and the host that serves its models; both are to be run.

    Args:
        bus: the bus.
        data_dir: where files are made of checkpoints; trainers of this machine keep theirs below it.
        models: the configured models, on which registered ones stand.
        config: the limits.
        running: the engines of those models, in this worker.
        build: makes engines of what was merged.
        attachments: what those of a request to a registered model may cost, and from where they may come.
        drain: how long running calls may go on when the worker ends.
    """
    records = await open_records(bus)
    digests = Digests()
    engines: dict[str, OnEngine] = {
        "llama_cpp": OnLlamaCpp(digests, attachments),
        "vllm": OnVllm(digests, running, build, attachments),
    }
    bases = Bases(models, engines)
    cache = ModelCache(data_dir / "models", config.convert_seconds)
    sources = open_sources(bus, data_dir, config)
    kind = LanguageModels(bases, engines, cache, sources)
    host = ModelHost(bus, records, kind, config.drain_seconds, drain)
    registrar = Registrar(records, host, config.versions)
    return ModelRegistryActor(bus, records, registrar, sources, config.models), host


def open_sources(bus: Bus, data_dir: Path, config: ServingConfig) -> Sources:
    """Return what finds checkpoints: those of jobs on this machine, and those below the configured roots."""
    return Sources(bus, [data_dir / "training" / "jobs", *map(Path, config.roots)])
