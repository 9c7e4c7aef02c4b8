"""A runner dies at every write of a conversation, or is killed at any time: each remark stands once, and another one goes on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from anyio.abc import TaskStatus
from support.groups import Talks, agent, group, human, running_groups
from support.processes import support_process

from ayllu.actors.engines.engine import Generation, Prompt
from ayllu.actors.engines.scripted import Step
from ayllu.actors.groups.runner import Runner
from ayllu.bus import connect, local_bus
from ayllu.bus.bus import Bus
from ayllu.bus.durable import Appended, Storage, Streams
from ayllu.bus.processes import stop_process
from ayllu.bus.server import embedded_server
from ayllu.schemas import GroupEvent, GroupEventKind, GroupPolicy, TurnStatus

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("group-faults")]

K = GroupEventKind
BEGAN, ENDED = (K.speaking, K.moderating), (K.remark, K.passed, K.withdrawn, K.chosen, K.unclear)


class Died(BaseException):
    """The runner is no more."""


class Doomed:
    """Streams that let their runner die at the n-th entry of a journal, before or after it is stored."""

    def __init__(self, streams: Streams, at: int, *, stored: bool) -> None:
        self._streams = streams
        self._left = at
        self._stored = stored
        self.died = anyio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._streams, name)

    async def append(self, subject: str, payload: bytes, **options: Any) -> Appended:
        self._left -= ".group." in subject
        if self._left > 0:
            return await self._streams.append(subject, payload, **options)
        if self._left == 0 and self._stored:
            await self._streams.append(subject, payload, **options)
        self.died.set()
        raise Died


@dataclass
class DoomedStorage:
    streams: Any
    storage: Storage

    async def key_value(self, bucket: str, *, ttl: float = 0.0) -> Any:
        return await self.storage.key_value(bucket, ttl=ttl)

    async def objects(self, bucket: str, **options: Any) -> Any:
        return await self.storage.objects(bucket, **options)


async def run_until_it_dies(bus: Bus, doomed: Doomed, *, task_status: TaskStatus[None]) -> None:
    mortal = replace(bus, storage=cast(Storage, DoomedStorage(doomed, bus.storage)))
    try:
        await Runner(mortal).run(task_status=task_status)
    except* Died:
        pass


def script(prompt: Prompt, _: Generation) -> Sequence[Step]:
    """Say how many remarks were seen; who is the moderator names somebody."""
    count = len(prompt.messages) - 1
    if "You are the moderator" in prompt.messages[-1].text:
        return ["Bob" if count % 2 else "Ann"]
    return [f"{count}"]


def check(events: Sequence[GroupEvent], remarks: int) -> list[str]:
    """Check what holds after any fault, and return who spoke."""
    assert [event.index for event in events] == list(range(len(events)))
    assert [event.kind is K.ended for event in events] == [False] * (len(events) - 1) + [True]
    said = [event.remark for event in events if event.remark is not None]
    assert [remark.number for remark in said] == list(range(1, remarks + 1))
    begun = [event.turn_id for event in events if event.kind in BEGAN]
    ended = [event.turn_id for event in events if event.kind in ENDED and event.turn_id]
    assert len(set(begun)) == len(begun)
    assert sorted(map(str, begun)) == sorted(map(str, ended))
    return [remark.member for remark in said]


def name_of(events: Sequence[GroupEvent]) -> str:
    assert events[0].config is not None
    return events[0].config.uuid


async def check_turns(talks: Talks, events: Sequence[GroupEvent]) -> None:
    """Each remark is what its turn came to, and no agent took other turns for the group."""
    begun: dict[str, set[str]] = {}
    for event in events:
        if event.kind in BEGAN:
            begun.setdefault(str(event.agent_uuid), set()).add(str(event.turn_id))
    for name, turns in begun.items():
        listed = {turn.turn_id: turn async for turn in talks.agents.turns.list(name, 1000)}
        assert {turn for turn in listed if turn.startswith(f"{name_of(events)}.")} <= turns
        for event in events:
            if event.kind is K.remark and event.agent_uuid == name:
                turn = listed[str(event.turn_id)]
                assert turn.status is TurnStatus.completed
                assert turn.response_message is not None
                assert event.remark is not None
                assert turn.response_message.content == event.remark.text


@pytest.mark.parametrize("stored", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("policy", GroupPolicy)
async def test_at_every_write(policy: GroupPolicy, stored: bool) -> None:
    moderator = "mod" if policy is GroupPolicy.moderator else None
    at, died = 0, True
    async with local_bus() as bus, running_groups(bus, script, runners=0) as talks:
        while died:
            at += 1
            request = group(
                f"group {at}",
                agent("Ann"),
                agent("Bob"),
                policy=policy,
                moderator=moderator,
                max_remarks=3,
            )
            doomed = Doomed(bus.storage.streams, at, stored=stored)
            with anyio.fail_after(20):
                await talks.groups.create(request)
                events = await through(talks, doomed, request.uuid)
            died = doomed.died.is_set()
            check(events, 3)
            await check_turns(talks, events)
        assert at > 6


async def through(talks: Talks, doomed: Doomed, name: str) -> list[GroupEvent]:
    """Run a conversation with a runner that dies, and with one that comes after it."""
    events: list[GroupEvent] = []

    async def succeed() -> None:
        await doomed.died.wait()
        await talks.runner()

    async with anyio.create_task_group() as tasks:
        await tasks.start(run_until_it_dies, talks.agents.bus, doomed)
        tasks.start_soon(succeed)
        events = await talks.events(name)
        tasks.cancel_scope.cancel()
    for runner in talks.runners:
        runner.cancel()
    return events


@pytest.mark.slow
async def test_runners_are_killed_at_random_points(tmp_path: Path) -> None:
    """Twenty remarks of two agents and a human; two of the processes that drive them are killed with -9."""
    remarks = 20
    async with embedded_server(tmp_path / "nats") as server, connect(server.url) as bus:
        async with running_groups(bus, slowly, runners=0) as talks:
            with anyio.fail_after(60):
                request = group("g", agent("Ann"), agent("Bob"), human("Zoe"), max_remarks=remarks)
                await talks.groups.create(request)
                events = await killed_twice(talks, server.url)
            names = check(events, remarks)
            assert names == [request.members[number % 3].name for number in range(remarks)]
            await check_turns(talks, events)


def slowly(prompt: Prompt, generation: Generation) -> Sequence[Step]:
    return [*script(prompt, generation), 0.1]


async def killed_twice(talks: Talks, url: str) -> list[GroupEvent]:
    """Follow a conversation to its end, kill the runner at two random events, and let the human speak."""
    points = sorted(random.sample(range(3, 36), 2))
    runner = await support_process("group_runner_process", url)
    events: list[GroupEvent] = []
    try:
        async for event in talks.groups.events("g"):
            events.append(event)
            if points and event.index >= points[0]:
                points = [point for point in points if point > event.index]
                await anyio.sleep(random.uniform(0.0, 0.1))  # Anywhere between two events.
                runner.kill()
                with anyio.fail_after(10):
                    await runner.wait()
                runner = await support_process("group_runner_process", url)
            if event.kind is K.waiting:
                await talks.say("g", "Zoe", f"after {event.index}", f"m{event.index}")
    finally:
        await stop_process(runner, patience=5)
    return events
