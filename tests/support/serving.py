"""A worker's registry of models in the test's own process: a real engine, a local bus, and a double that tells of jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from msgspec.structs import replace

from ayllu.actors.inference import InferenceActor
from ayllu.actors.models import ModelsActor
from ayllu.actors.registry import ModelSpec, build_engine, default_models
from ayllu.actors.serving.opening import open_serving
from ayllu.actors.serving.running_engines import RunningEngines
from ayllu.actors.serving.settings import ServingConfig
from ayllu.bus import Bus, client
from ayllu.bus.service import serve
from ayllu.schemas import (
    ChatCompletionRequest,
    Dialog,
    Inference,
    Message,
    Model,
    ModelRegistry,
    Models,
    RegisteredModel,
    RegisterModelRequest,
    Role,
)

from .checkpoints import QUESTION, JobsDouble, trained

SPEC = replace(default_models()[0], context=256, slots=2)


@dataclass(frozen=True, slots=True)
class Registry:
    """Clients of a deployment that registers models."""

    bus: Bus
    models: ModelRegistry
    inference: Inference

    async def register(self, name: str, job: str) -> RegisteredModel:
        return await self.models.register(RegisterModelRequest(name, job_uuid=job))

    async def ask(self, model: str, question: str = QUESTION, most: int = 8) -> str:
        """Return the answer to a question."""
        reply = await self.inference.chat_completion(chat(model, question, most))
        return str(reply.content)

    async def registered(self) -> list[RegisteredModel]:
        return [one async for one in self.models.registered()]

    async def served(self) -> dict[str, Model]:
        return {one.name: one async for one in client(Models, self.bus).models()}


def chat(model: str, question: str = QUESTION, most: int = 8) -> ChatCompletionRequest:
    message = Message(role=Role.user, content=question)
    return ChatCompletionRequest(model=model, dialog=Dialog(message=message), max_tokens=most)


def clients(bus: Bus) -> Registry:
    """Return the clients of a deployment on a bus."""
    return Registry(bus, client(ModelRegistry, bus), client(Inference, bus))


@asynccontextmanager
async def running_worker(
    bus: Bus, data_dir: Path, *, specs: Sequence[ModelSpec] = (SPEC,), **config: Any
) -> AsyncIterator[None]:
    """Run what an inference worker runs, until the end of the block; jobs' checkpoints are a root."""
    roots = [str(trained() / "training"), *config.pop("roots", [])]
    registry, host = await open_serving(
        bus, data_dir, specs, ServingConfig(roots=roots, **config), RunningEngines()
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(host.run)
        await tasks.start(serve, bus, registry)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def deployment(bus: Bus, data_dir: Path, **config: Any) -> AsyncIterator[Registry]:
    """Run a worker with its base, jobs that have ended, and the list of models, until the end of the block."""
    actors = (JobsDouble(trained() / "training" / "jobs"), ModelsActor(bus))
    async with build_engine(SPEC) as engine, anyio.create_task_group() as tasks:
        base = InferenceActor(engine, name=SPEC.name, aliases=SPEC.aliases)
        await tasks.start(serve, bus, base, *actors)
        async with running_worker(bus, data_dir, **config):
            yield clients(bus)
        tasks.cancel_scope.cancel()
