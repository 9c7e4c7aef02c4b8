"""A double of vLLM's engine, and a worker whose base it is: what serves adapters is shown without vLLM."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskStatus

from ayllu.actors.engines.engine import Delta, Generation, Prompt
from ayllu.actors.engines.settings import VllmSettings
from ayllu.actors.engines.vllm.engine import VllmEngine
from ayllu.actors.inference import InferenceActor
from ayllu.actors.models import ModelsActor
from ayllu.actors.registry import ModelSpec
from ayllu.actors.serving.opening import open_serving
from ayllu.actors.serving.running_engines import RunningEngines, watched
from ayllu.actors.serving.settings import ServingConfig
from ayllu.actors.supervision import Backoff, supervise
from ayllu.bus import Bus
from ayllu.bus.kept import keeping
from ayllu.bus.service import serve
from ayllu.schemas import EngineDead, EngineError, RegisteredModel, RegisterModelRequest, StopReason

from .serving import Registry, clients

BASE = "quipu"
WAITS = "wait"
"""The question to which the answer comes in two pieces: the second one when it is let."""


class VllmDouble(VllmEngine):
    """Answers with ``base``, ``model`` (merged), or an adapter's ``lora_alpha``. It can refuse adapters, and die.

    Attributes:
        adapters: the folders of those that are loaded, by their names.
        refuses: whether it refuses adapters.
        go: lets the second piece of an answer come.
    """

    def __init__(self, spec: ModelSpec, says: str) -> None:
        super().__init__(
            Path(spec.source), context=spec.context, slots=spec.slots, settings=spec.vllm
        )
        self.folder = Path(spec.source)
        self.adapters: dict[str, Path] = {}
        self.refuses = False
        self.go = anyio.Event()
        self._says = says
        self._died = anyio.Event()

    async def __aenter__(self) -> VllmDouble:
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert not self.adapters, "an adapter outlived its base"
        self.die()

    def die(self) -> None:
        self._died.set()
        self.go.set()

    async def watch(self) -> None:
        await self._died.wait()
        raise EngineDead("the double died")

    async def load_adapter(self, name: str, folder: Path) -> Any:
        if self._died.is_set():
            raise EngineDead("the double died")
        if self.refuses:
            raise EngineError(f"vLLM cannot load the adapter {name}: look into {folder}/x")
        assert name not in self.adapters
        assert len([path async for path in anyio.Path(folder).iterdir()]) == 2
        self.adapters[name] = folder
        return name

    async def unload_adapter(self, adapter: Any) -> None:
        del self.adapters[adapter]

    async def generate_with(
        self, adapter: Any, prompt: Prompt, generation: Generation
    ) -> AsyncGenerator[Delta, None]:
        del generation
        text = self._says
        if adapter is not None:
            config = json.loads((self.adapters[adapter] / "adapter_config.json").read_text())
            text = str(config["lora_alpha"])
        yield Delta(text)
        if prompt.messages[-1].text == WAITS:
            await self.go.wait()
            if self._died.is_set():
                raise EngineDead("the double died")
            yield Delta(" and on")
        yield Delta(stop_reason=StopReason.finished_ok, prompt_tokens=1, completion_tokens=1)


@dataclass
class VllmWorker:
    """A worker with a base of the engine vllm that registers models.

    Attributes:
        registry: its clients.
        root: where checkpoints may lie.
        bases: the engines of its base, the last one runs.
        merged: the engines of what was merged.
        restart: lets the base start again after it died.
    """

    registry: Registry
    root: Path
    spec: ModelSpec
    bases: list[VllmDouble] = field(default_factory=list)
    merged: list[VllmDouble] = field(default_factory=list)
    restart: anyio.Event = field(default_factory=anyio.Event)

    @property
    def base(self) -> VllmDouble:
        return self.bases[-1]

    async def register(self, name: str, folder: Path) -> RegisteredModel:
        request = RegisterModelRequest(name, url=folder.as_uri(), base=BASE)
        return await self.registry.models.register(request)

    def build(self, spec: ModelSpec) -> VllmDouble:
        self.merged.append(VllmDouble(spec, "model"))
        return self.merged[-1]


@asynccontextmanager
async def vllm_worker(
    bus: Bus, tmp_path: Path, base: Path, **settings: Any
) -> AsyncIterator[VllmWorker]:
    """Run it as a worker process does, until the end of the block."""
    spec = ModelSpec(
        name=BASE,
        engine="vllm",
        source=str(base),
        context=64,
        slots=2,
        vllm=VllmSettings(**{"adapters": 2, **settings}),
    )
    worker = VllmWorker(clients(bus), tmp_path / "checkpoints", spec)
    worker.root.mkdir(exist_ok=True)
    running = RunningEngines()
    config = ServingConfig(roots=[str(worker.root)], drain_seconds=5)

    async def start(*, task_status: TaskStatus[Any]) -> None:
        if worker.bases:
            await worker.restart.wait()
        worker.bases.append(VllmDouble(spec, "base"))
        engine = worker.base
        async with engine, watched(engine), running.running(BASE, engine):
            await serve(bus, InferenceActor(engine, BASE), task_status=task_status)

    async with keeping(bus, [BASE]), anyio.create_task_group() as tasks:
        await tasks.start(serve, bus, ModelsActor(bus))
        await tasks.start(supervise_soon, start)
        registry, host = await open_serving(
            bus, tmp_path, [spec], config, running, build=worker.build
        )
        await tasks.start(host.run)
        await tasks.start(serve, bus, registry)
        yield worker
        tasks.cancel_scope.cancel()


async def supervise_soon(start: Any, *, task_status: TaskStatus[None]) -> None:
    await supervise("the base", start, backoff=Backoff(first=0.001), task_status=task_status)
