"""What turns cost that wait, for their busy agents or for people: the executor's memory and processor."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from typing import Any

import anyio
import msgspec

from ayllu.actors.agents.actor import AgenticSystemActor, AgentTurnsActor
from ayllu.actors.agents.records import Execute
from ayllu.actors.agents.register import Register, open_register
from ayllu.bus.bus import connect as connect_bus
from ayllu.bus.service import serve
from ayllu.schemas import Message, Role, encode

from .child import Child, helper, running
from .idle import resident_kib
from .numbers import number
from .topology import Place, inference
from .turns import ECHO, SleeperActor, sleep_call, sleepy_agent

AGENTS_BUSY = 8
TOOL_SECONDS = 120.0
WATCHED_SECONDS = 10.0
EXECUTOR_SLOTS = 16
BEGIN_SECONDS = 30.0
SETTLE_SECONDS = 3.0
"""Until an executor has let go of an agent that has nothing to do."""


class CountingSleeper(SleeperActor):
    """Tells when as many calls as there are busy agents have begun."""

    def __init__(self) -> None:
        self.begun = anyio.Semaphore(0)

    async def sleep(self, seconds: float) -> str:
        self.begun.release()
        return await super().sleep(seconds)


async def measure_waiting(place: Place, turns: int = 1000, *, tiny: bool = False) -> dict[str, Any]:
    """Accept turns for agents whose tools take long, and watch the executor that works for these, before and after."""
    watched = 1.0 if tiny else WATCHED_SECONDS
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(connect_bus(place.bus))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        sleeper = CountingSleeper()
        await tasks.start(serve, bus, sleeper)
        await stack.enter_async_context(inference(place, ECHO))
        register = await open_register(bus)
        names = [f"busy {number}" for number in range(AGENTS_BUSY)]
        command = helper("turns", place.bus, str(EXECUTOR_SLOTS))
        executor = await stack.enter_async_context(running(command, place.log("executor")))
        for name in names:
            await AgenticSystemActor(register).create(sleepy_agent(name))
            await _accept(register, name, "running", sleep_call(TOOL_SECONDS))
        with anyio.fail_after(BEGIN_SECONDS):
            for _ in names:
                await sleeper.begun.acquire()
        before = await _watch(executor, watched)
        begun = time.perf_counter()
        for waiting in range(turns):
            await _accept(register, names[waiting % len(names)], f"waiting {waiting}", "Wait.")
        accepted = turns / (time.perf_counter() - begun)
        after = await _watch(executor, watched)
        await _ask_people(register, turns)
        asked = await _watch(executor, watched)
    return {
        "turns": turns,
        "accepted_per_second": accepted,
        "none": before,
        "waiting": after,
        "asked": asked,
    }


async def _ask_people(register: Register, turns: int) -> None:
    """Let agents take turns, one each, whose calls wait for approval; return when all do."""
    agents, people = AgenticSystemActor(register), AgentTurnsActor(register)
    request = sleepy_agent("asking")
    request = msgspec.structs.replace(request, require_approval=request.executable_tools)
    await agents.create(request)
    record = await register.record("asking")
    for one in range(turns):
        # As `create` does, but without the half second in which it looks for tools.
        name = f"asking {one}"
        config = msgspec.structs.replace(request, uuid=name)
        payload = encode(msgspec.structs.replace(record, config=config))
        await register.agents.create(name, payload)
        await _accept(register, name, "asks", sleep_call(TOOL_SECONDS))
    with anyio.fail_after(BEGIN_SECONDS + turns / 10):
        while True:
            await anyio.sleep(SETTLE_SECONDS)
            if len([one async for one in people.approvals()]) == turns:
                return


async def _accept(register: Register, agent: str, turn: str, text: str) -> None:
    record = await register.record(agent)
    messages = [Message(role=Role.user, content=text)]
    execute = Execute(turn=turn, messages=messages, created=record.created, turn_history=[])
    await register.ask(agent, execute, f"{agent}/{turn}")


async def _watch(executor: Child, seconds: float) -> dict[str, float]:
    before = executor.cpu_seconds
    await anyio.sleep(seconds)
    return {
        "resident_mib": resident_kib(executor.pid) / 1024,
        "processor_percent": 100 * (executor.cpu_seconds - before) / seconds,
    }


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    return [
        *(
            (
                f"executor with {AGENTS_BUSY} turns at their tools and {waiting}",
                f"{number(found['resident_mib'])} MiB, {number(found['processor_percent'])} % of a processor",
            )
            for waiting, found in (
                ("none that waits", result["none"]),
                (f"{result['turns']} that wait for these", result["waiting"]),
                ("as many more that wait for people", result["asked"]),
            )
        ),
        ("turns accepted a second, one after the other", number(result["accepted_per_second"])),
    ]
