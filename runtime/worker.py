"""What a worker runs: actors of some kinds, under supervision."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import Any

import anyio
from anyio.abc import TaskStatus
from msgspec.structs import replace

from ..actors.datasets.settings import DatasetsConfig
from ..actors.embedding.registry import build_embedder
from ..actors.inference import InferenceActor
from ..actors.models import ModelsActor
from ..actors.registry import ModelSpec, build_engine
from ..actors.serving.running_engines import RunningEngines, watched
from ..actors.supervision import Start, supervise
from ..bus.bus import Bus
from ..bus.kept import keeping
from ..bus.service import Drain, serve
from ..schemas import AylluError, error_from
from .config import Config
from .gateway import serve_gateway
from .importing import OwnActor, own_start

READY_LINE = "ready"
"""What a worker prints on stdout when all its actors are ready."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What actors of a worker are started with.

    Attributes:
        bus: the bus.
        config: the configuration of the deployment.
        data_dir: where actors keep files of their own.
        listener: the socket of the gateway, if the worker has one.
        drain: how long running calls of models and own actors may go on when the worker ends.
        own: the actors of others.
    """

    bus: Bus
    config: Config
    data_dir: Path
    listener: socket | None
    drain: Drain = field(default_factory=Drain)
    own: Sequence[OwnActor] = ()

    @property
    def generated(self) -> Path:
        """Where generated datasets are written."""
        return self.data_dir / "synthetic"

    @property
    def datasets(self) -> DatasetsConfig:
        """From where datasets may come: what was generated here too."""
        config = self.config.datasets
        return replace(config, roots=[*config.roots, str(self.generated)])


def _inference(setting: Setting) -> Mapping[str, Start]:
    running = RunningEngines()

    def start_of(spec: ModelSpec) -> Start:
        async def start(*, task_status: TaskStatus[Any]) -> None:
            async with (
                build_engine(spec) as engine,
                watched(engine),
                running.running(spec.name, engine),
            ):
                actor = InferenceActor(
                    engine,
                    name=spec.name,
                    aliases=spec.aliases,
                    waiting=spec.waiting,
                    attachments=setting.config.attachments,
                    prices=(spec.prompt_price, spec.completion_price),
                )
                await serve(setting.bus, actor, drain=setting.drain, task_status=task_status)

        return start

    async def start_registered(*, task_status: TaskStatus[Any]) -> None:
        from ..actors.serving.opening import open_serving

        config = setting.config
        registry, host = await open_serving(
            setting.bus,
            setting.data_dir,
            config.served_models,
            config.serving,
            running,
            attachments=config.attachments,
            drain=setting.drain,
        )
        # Adapters are served by the engines of these.
        await running.wait_for([one.name for one in config.served_models if one.engine == "vllm"])
        async with anyio.create_task_group() as tasks:
            await tasks.start(host.run)
            await serve(setting.bus, registry, task_status=task_status)

    async def keep(*, task_status: TaskStatus[Any]) -> None:
        specs = setting.config.served_models
        names = [name for spec in specs for name in (spec.name, *spec.aliases)]
        async with keeping(setting.bus, names):
            task_status.started()
            await anyio.sleep_forever()

    starts = {f"model {spec.name}": start_of(spec) for spec in setting.config.served_models}
    return {**starts, "registered models": start_registered, "names of models": keep}


def _gateway(setting: Setting) -> Mapping[str, Start]:
    async def start(*, task_status: TaskStatus[Any]) -> None:
        if setting.listener is None:
            raise RuntimeError("a gateway needs a listening socket")
        # A copy: the server closes it when it ends, and the next one needs it again.
        with setting.listener.dup() as listener:
            config = setting.config.gateway
            await serve_gateway(setting.bus, config, listener, task_status=task_status)

    async def start_models(*, task_status: TaskStatus[Any]) -> None:
        await serve(setting.bus, ModelsActor(setting.bus), task_status=task_status)

    return {"models": start_models, "gateway": start}


def _memory(setting: Setting) -> Mapping[str, Start]:
    async def start(*, task_status: TaskStatus[Any]) -> None:
        # Only these workers need what these modules import.
        from ..actors.embedding.actor import EmbeddingActor
        from ..actors.memory.actors import memory_actors

        specs = setting.config.served_embedders
        async with AsyncExitStack() as stack:
            embedders = {
                spec.name: await stack.enter_async_context(build_embedder(spec)) for spec in specs
            }
            memory = await stack.enter_async_context(
                memory_actors(setting.bus, setting.data_dir / "memory", embedders, specs[0].name)
            )
            actors = (memory.banks, memory.documents, *map(EmbeddingActor, embedders.values()))
            async with anyio.create_task_group() as tasks:
                for actor in actors:
                    await tasks.start(serve, setting.bus, actor)
                task_status.started()

    return {"memory": start}


def _agents(setting: Setting) -> Mapping[str, Start]:
    async def start(*, task_status: TaskStatus[Any]) -> None:
        from ..actors.agents.actor import AgenticSystemActor, AgentTurnsActor
        from ..actors.agents.executor import Executor
        from ..actors.agents.register import open_register
        from ..actors.agents.tracing import TurnTracesActor
        from ..actors.tools.actor import ToolListActor

        register = await open_register(setting.bus)
        executor = Executor(setting.bus, attachments=setting.config.attachments)
        actors = (
            AgenticSystemActor(register, executor),
            AgentTurnsActor(register, executor),
            TurnTracesActor(register),
            ToolListActor(setting.bus),
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(executor.run)
            await serve(setting.bus, *actors, task_status=task_status)

    return {"agents": start}


def _groups(setting: Setting) -> Mapping[str, Start]:
    async def start(*, task_status: TaskStatus[Any]) -> None:
        from ..actors.groups.actor import GroupsActor
        from ..actors.groups.register import open_register
        from ..actors.groups.runner import Runner

        register = await open_register(setting.bus)
        runner = Runner(setting.bus)
        async with anyio.create_task_group() as tasks:
            await tasks.start(runner.run)
            await serve(setting.bus, GroupsActor(register), task_status=task_status)

    return {"groups": start}


def _triggers(setting: Setting) -> Mapping[str, Start]:
    async def start(*, task_status: TaskStatus[Any]) -> None:
        from ..actors.triggers.actor import open_triggers

        actor, worker = await open_triggers(setting.bus)
        async with anyio.create_task_group() as tasks:
            await tasks.start(worker.run)
            await serve(setting.bus, actor, task_status=task_status)

    return {"triggers": start}


def _datasets(setting: Setting) -> Mapping[str, Start]:
    async def start(*, task_status: TaskStatus[Any]) -> None:
        from ..actors.datasets.actor import open_datasets
        from ..actors.datasets.content import ContentStore

        content = ContentStore(setting.data_dir / "training" / "content", setting.datasets)
        actor = await open_datasets(setting.bus, content)
        await serve(setting.bus, actor, task_status=task_status)

    return {"datasets": start}


def _training(setting: Setting) -> Mapping[str, Start]:
    async def start(*, task_status: TaskStatus[Any]) -> None:
        from ..actors.training.opening import open_training

        config = setting.config
        opened = await open_training(
            setting.bus,
            setting.data_dir / "training",
            config.training,
            setting.datasets,
            config.served_models,
        )
        async with anyio.create_task_group() as tasks:
            for trainer in opened.trainers:
                await tasks.start(trainer.run)
            await serve(setting.bus, opened.training, opened.jobs, task_status=task_status)

    return {"training": start}


def _synthetic_data(setting: Setting) -> Mapping[str, Start]:
    async def start(*, task_status: TaskStatus[Any]) -> None:
        from ..actors.synthetic.opening import open_synthetic_data
        from ..actors.synthetic.settings import with_default_model

        config = setting.config
        defaults = with_default_model(config.synthetic_data, config.served_models[0].name)
        actor, runners = await open_synthetic_data(setting.bus, setting.generated, defaults)
        async with anyio.create_task_group() as tasks:
            for runner in runners:
                await tasks.start(runner.run)
            await serve(setting.bus, actor, task_status=task_status)

    return {"synthetic data": start}


def _improvement(setting: Setting) -> Mapping[str, Start]:
    async def start(*, task_status: TaskStatus[Any]) -> None:
        from ..actors.improvement.opening import open_improvement

        config = setting.config
        folder = setting.data_dir / "training"
        actor, runner = await open_improvement(
            setting.bus, folder, config.training, config.served_models
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(runner.run)
            await serve(setting.bus, actor, task_status=task_status)

    return {"improvement": start}


def _rewards(setting: Setting) -> Mapping[str, Start]:
    # Only these workers need what these modules import.
    from ..actors.rewards.actor import RewardScoringActor
    from ..actors.rewards.registry import build_reward
    from ..actors.rewards.specs import AnyRewardSpec

    specs = setting.config.served_rewards

    def start_of(spec: AnyRewardSpec) -> Start:
        async def start(*, task_status: TaskStatus[Any]) -> None:
            async with AsyncExitStack() as stack:
                try:
                    reward = build_reward(spec, setting.bus, specs)
                    engine = await stack.enter_async_context(reward)
                except AylluError as error:
                    why = f"reward model {spec.name!r}: {error.message}"
                    raise error_from(replace(error.info, message=why)) from error
                actor = RewardScoringActor(engine, spec.name, spec.aliases)
                await serve(setting.bus, actor, drain=setting.drain, task_status=task_status)

        return start

    async def start_registered(*, task_status: TaskStatus[Any]) -> None:
        from ..actors.rewards.registered import open_registered
        from ..actors.training.settings import Trainables

        config, data_dir = setting.config, setting.data_dir
        weights = data_dir / "training" / "weights"
        trainables = Trainables(config.training, config.served_models, weights)
        taken = [name for spec in specs for name in (spec.name, *spec.aliases)]
        registered, host = await open_registered(
            setting.bus, data_dir, trainables, taken, config.serving, drain=setting.drain
        )
        async with anyio.create_task_group() as tasks:
            await tasks.start(host.run)
            await serve(setting.bus, registered, task_status=task_status)

    starts = {f"reward model {spec.name}": start_of(spec) for spec in specs}
    return {**starts, "registered reward models": start_registered}


def _tools(setting: Setting) -> Mapping[str, Start]:
    from ..actors.tools.opening import tool_starts

    return tool_starts(setting.bus, setting.config.tools)


def _shields(setting: Setting) -> Mapping[str, Start]:
    from ..actors.shields.opening import shield_starts

    config = setting.config
    return shield_starts(setting.bus, config.shields, config.served_models[0].name)


KINDS: Mapping[str, Callable[[Setting], Mapping[str, Start]]] = {
    "gateway": _gateway,
    "inference": _inference,
    "memory": _memory,
    "agents": _agents,
    "triggers": _triggers,
    "groups": _groups,
    "tools": _tools,
    "shields": _shields,
    "datasets": _datasets,
    "training": _training,
    "rewards": _rewards,
    "synthetic_data": _synthetic_data,
    "improvement": _improvement,
}
"""What a worker can run: for each kind, what to supervise by its name."""


async def run_actors(
    kinds: Sequence[str],
    setting: Setting,
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Run actors of some kinds, and own ones, under supervision until cancelled; started when all are ready."""
    async with anyio.create_task_group() as supervisors:
        async with anyio.create_task_group() as starting:
            for kind in kinds:
                for name, start in KINDS[kind](setting).items():
                    starting.start_soon(supervisors.start, supervise, name, start)
            for own in setting.own:
                start = own_start(own, setting.bus, setting.drain)
                starting.start_soon(supervisors.start, supervise, own.name, start)
        task_status.started()


def announce(line: str) -> None:
    """Print a line for whoever started this process."""
    # Whoever waited for it may be gone; the process goes on to its own end.
    with suppress(BrokenPipeError):
        sys.stdout.write(line + os.linesep)
        sys.stdout.flush()
