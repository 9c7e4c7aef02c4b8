"""Agents on a bus, with the scripted engine in the model's place: its words are known."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import TaskGroup

from ayllu.actors.agents.actor import AgenticSystemActor, AgentTurnsActor
from ayllu.actors.agents.executor import ATTACHMENTS, SLOTS, Executor
from ayllu.actors.agents.register import Register, open_register
from ayllu.actors.attachments.settings import AttachmentsConfig
from ayllu.actors.engines.scripted import Script, ScriptedEngine, script_from
from ayllu.actors.inference import WAITING, InferenceActor
from ayllu.bus.bus import Bus
from ayllu.bus.client import client
from ayllu.bus.service import serve
from ayllu.schemas import (
    AgenticSystem,
    AgenticSystemCreateRequest,
    AgenticSystemExecuteRequest,
    AgentTurns,
    Message,
    Role,
    TurnEvent,
)

MODEL = "script"


@dataclass
class Agents:
    """Agents that are served.

    Attributes:
        bus: the bus.
        system: the API, over the bus.
        turns: that of turns.
        register: what the actors stand on.
        engine: the model.
        tasks: where further executors and actors run.
    """

    bus: Bus
    system: AgenticSystem
    turns: AgentTurns
    register: Register
    engine: ScriptedEngine
    tasks: TaskGroup
    executors: list[Executor] = field(default_factory=list)

    async def executor(
        self, slots: int = SLOTS, attachments: AttachmentsConfig = ATTACHMENTS
    ) -> tuple[Executor, anyio.CancelScope]:
        """Start an executor, and return it with what ends it."""
        executor = Executor(self.bus, slots=slots, attachments=attachments)
        scope = anyio.CancelScope()

        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with scope:
                await executor.run(task_status=task_status)

        await self.tasks.start(run)
        self.executors.append(executor)
        return executor, scope

    async def create(self, uuid: str, **config: Any) -> None:
        """Create an agent."""
        await self.system.create(
            AgenticSystemCreateRequest(
                uuid=uuid, **{"instructions": "Help.", "model": MODEL, **config}
            )
        )

    async def events(
        self, agent: str, turn: str, epoch: int = 0, index: int = 0
    ) -> list[TurnEvent]:
        """Return all events of a turn."""
        return [event async for event in self.turns.events(agent, turn, epoch, index)]


def asked(agent: str, text: str, **fields: Any) -> AgenticSystemExecuteRequest:
    """Return the request that lets an agent answer a text."""
    messages: Sequence[Message] = [Message(role=Role.user, content=text)]
    return AgenticSystemExecuteRequest(agent_uuid=agent, messages=list(messages), **fields)


@asynccontextmanager
async def running_agents(
    bus: Bus,
    *actors: object,
    script: Script | str = "echo",
    executors: int = 1,
    engine: ScriptedEngine | None = None,
    local: bool = False,
    waiting: int = WAITING,
    prices: tuple[float, float] = (0.0, 0.0),
) -> AsyncIterator[Agents]:
    """Serve agents, executors, a scripted model, and other actors; ``local``: the API takes turns with an executor of its own."""
    chosen = script_from(script) if isinstance(script, str) else script
    model = engine or ScriptedEngine(chosen)
    async with model, anyio.create_task_group() as tasks:
        register = await open_register(bus)
        executor = Executor(bus) if local else None
        if executor is not None:
            await tasks.start(executor.run)
        await tasks.start(
            serve,
            bus,
            InferenceActor(model, MODEL, waiting=waiting, prices=prices),
            AgenticSystemActor(register, executor),
            AgentTurnsActor(register, executor),
            *actors,
        )
        agents = Agents(
            bus, client(AgenticSystem, bus), client(AgentTurns, bus), register, model, tasks
        )
        for _ in range(executors):
            await agents.executor()
        yield agents
        tasks.cancel_scope.cancel()
