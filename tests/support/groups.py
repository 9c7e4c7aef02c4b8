"""Groups on a bus, whose agents have the scripted engine in the model's place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import TaskStatus
from support.agents import Agents, running_agents

from ayllu.actors.engines.scripted import Script
from ayllu.actors.groups.actor import GroupsActor
from ayllu.actors.groups.register import Register, open_register
from ayllu.actors.groups.runner import Runner
from ayllu.bus.bus import Bus
from ayllu.bus.client import client
from ayllu.bus.service import serve
from ayllu.schemas import (
    GroupCreateRequest,
    GroupEvent,
    GroupEventKind,
    GroupMember,
    GroupPostRequest,
    GroupRemark,
    Groups,
    MemberKind,
)


@dataclass
class Talks:
    """Groups that are served.

    Attributes:
        agents: what their agents run on.
        groups: the API, over the bus.
        register: what the actor stands on.
        runners: what ends each runner.
    """

    agents: Agents
    groups: Groups
    register: Register
    runners: list[anyio.CancelScope] = field(default_factory=list)

    async def runner(self, bus: Bus | None = None) -> anyio.CancelScope:
        """Start a runner, and return what ends it."""
        scope = anyio.CancelScope()
        runner = Runner(bus or self.agents.bus)

        async def run(*, task_status: TaskStatus[None]) -> None:
            with scope:
                await runner.run(task_status=task_status)

        await self.agents.tasks.start(run)
        self.runners.append(scope)
        return scope

    async def events(self, group: str, index: int = 0) -> list[GroupEvent]:
        """Return all events of a group from one on, to its end."""
        return [event async for event in self.groups.events(group, index)]

    async def until(self, group: str, met: Callable[[GroupEvent], bool]) -> GroupEvent:
        """Return the first event that meets a condition, once it is there."""
        async for event in self.groups.events(group):
            if met(event):
                return event
        raise AssertionError("the conversation has ended")

    async def until_kind(self, group: str, kind: GroupEventKind, count: int = 1) -> GroupEvent:
        """Return the event that is the n-th of its kind, once it is there."""
        seen = 0

        def met(event: GroupEvent) -> bool:
            nonlocal seen
            seen += event.kind is kind
            return seen == count

        return await self.until(group, met)

    async def say(self, group: str, member: str, text: str, id_: str | None = None) -> GroupRemark:
        """Say something as a human."""
        return await self.groups.post(GroupPostRequest(group, member, text, id_))


def agent(name: str, agent_id: str | None = None) -> GroupMember:
    """Return a member that is an agent of the same name in small letters."""
    return GroupMember(name, MemberKind.agent, agent_id or name.lower())


def human(name: str) -> GroupMember:
    """Return a human member."""
    return GroupMember(name, MemberKind.human)


def group(uuid: str, *members: GroupMember, **fields: Any) -> GroupCreateRequest:
    """Return the request that creates a group."""
    return GroupCreateRequest(uuid, "Llamas", list(members), **fields)


@asynccontextmanager
async def running_groups(
    bus: Bus, script: Script | str = "count:3", *, runners: int = 1
) -> AsyncIterator[Talks]:
    """Serve groups, runners and agents (ann, bob and cho, and mod, a moderator)."""
    async with running_agents(bus, script=script) as agents:
        register = await open_register(bus)
        await agents.tasks.start(serve, bus, GroupsActor(register))
        talks = Talks(agents, client(Groups, bus), register)
        for name in ("ann", "bob", "cho", "mod"):
            await agents.create(name)
        for _ in range(runners):
            await talks.runner()
        yield talks
