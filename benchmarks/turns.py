"""What a turn of an agent costs beside the plain chat that is in it: the same tokens, made durable, and followed.

Both go through the same gateway and the same model, in turn; a turn has one step of the model and no history.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

import anyio
import msgspec

from ayllu.actors.agents.actor import AgenticSystemActor
from ayllu.actors.agents.executor import Executor
from ayllu.actors.agents.register import open_register
from ayllu.bus.bus import connect as connect_bus
from ayllu.bus.client import client as client_of
from ayllu.bus.service import serve
from ayllu.client import connect
from ayllu.runtime.supervisor import BUS_URL_VARIABLE
from ayllu.runtime.worker import READY_LINE, announce
from ayllu.schemas import (
    AgenticSystem,
    AgenticSystemCreateRequest,
    AgenticSystemExecuteRequest,
    Message,
    Role,
    ToolDefinition,
    webmethod,
)

from .child import AYLLU, Child, helper, run, running
from .load import Load
from .numbers import Measure, alternate, ratios, spread
from .streams import ROUNDS, first_token_later, measure_load, spreads, system_rows
from .topology import SCRIPTED, Place, chat_frame, client, gateway, inference


@asynccontextmanager
async def executors(place: Place, name: str = "agents") -> AsyncIterator[Child]:
    """Run ``ayllu worker agents``."""
    command = [AYLLU, "worker", "agents", "--config", str(place.config(SCRIPTED))]
    environment = {BUS_URL_VARIABLE: place.bus}
    async with running(command, place.log(name), environment=environment) as child:
        yield child


def turn_frame(agent: str) -> str:
    """Return the frame that asks for a streamed turn."""
    params = {
        "agent_uuid": agent,
        "messages": [{"role": "user", "content": "Count."}],
        "turn_history": [],
        "stream": True,
    }
    frame = {"jsonrpc": "2.0", "id": 1, "method": "agentic_system.execute", "params": params}
    return msgspec.json.encode(frame).decode()


async def measure_turns(
    place: Place, pairs: int, streams: int, *, tiny: bool = False
) -> dict[str, Any]:
    """Measure tokens a second and the time to the first one, of turns and of chats."""
    async with AsyncExitStack() as stack:
        actor = await stack.enter_async_context(inference(place, SCRIPTED))
        agents = await stack.enter_async_context(executors(place))
        edge, url = await stack.enter_async_context(gateway(place))
        load = await stack.enter_async_context(client(place))
        names = [f"agent {streams} {number}" for number in range(streams)]
        async with connect(f"http://{urlsplit(url).netloc}") as api:
            for name in names:
                await api.agentic_system.create(
                    AgenticSystemCreateRequest(uuid=name, instructions="Count.", model="count")
                )
        rounds = 1 if tiny else ROUNDS.get(streams, 3)
        parts = {"client": load, "gateway": edge, "actor": actor, "agents": agents}
        chats = Load(url, [chat_frame("count", "Count.")] * streams, rounds)
        turns = Load(url, [turn_frame(name) for name in names], rounds)

        def of(question: Load) -> Measure:
            return lambda: measure_load(load, question, parts)

        values = await alternate({"chat": of(chats), "turn": of(turns)}, pairs)
    speed = {name: runs["tokens_per_second"] for name, runs in values.items()}
    return {
        **spreads(values),
        "ratio": ratios(speed["turn"], speed["chat"]),
        "first_token_later_ms": first_token_later(values, "turn", "chat"),
    }


RESUMED_EVENTS, RESUMES = 2000, 20
LONG = f"""
[[models]]
name = "long"
engine = "scripted"
source = "count:{RESUMED_EVENTS}"
slots = 64
"""
ECHO = """
[[models]]
name = "echo"
engine = "scripted"
source = "echo"
slots = 64
"""
TOOL_SECONDS, TOOL_SLOTS, TOOL_AGENTS = 0.3, 8, 32


class Sleeper(Protocol):
    """A tool that takes its time."""

    @webmethod(route="/sleeper/sleep", tool=True)
    async def sleep(self, seconds: float) -> str:
        """Sleep for some seconds."""
        ...


class SleeperActor(Sleeper):
    service_name = "sleeper"

    async def sleep(self, seconds: float) -> str:
        await anyio.sleep(seconds)
        return "slept"


def sleepy_agent(name: str) -> AgenticSystemCreateRequest:
    """Return an agent that does what it is told (`sleep_call`), and then answers."""
    return AgenticSystemCreateRequest(
        uuid=name,
        instructions="Repeat.",
        model="echo",
        available_tools=[ToolDefinition("sleeper.sleep")],
        executable_tools={"sleeper.sleep"},
        max_steps=2,
    )


def sleep_call(seconds: float) -> str:
    """Return what makes the model of such an agent call its tool."""
    return f"""<tool_call>[{{"name": "sleeper.sleep", "arguments": {{"seconds": {seconds}}}}}]</tool_call>"""


async def measure_resume(place: Place, pairs: int) -> dict[str, Any]:
    """Measure how soon a turn of many events is followed again: from the request to the first event that was missed."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(inference(place, LONG))
        await stack.enter_async_context(executors(place))
        _, url = await stack.enter_async_context(gateway(place))
        api = await stack.enter_async_context(connect(f"http://{urlsplit(url).netloc}"))
        await api.agentic_system.create(
            AgenticSystemCreateRequest(uuid="long", instructions="Count.", model="long")
        )
        async with api.agent("long").turn("Count.") as turn:
            whole = await turn.wait()
        found: dict[str, list[float]] = {"from the middle": [], "from the beginning": []}
        for _ in range(max(2, min(pairs, 5)) * 4):
            for name, index in (("from the middle", whole.index // 2), ("from the beginning", 0)):
                begun = time.perf_counter()
                events = api.agentic_system.turn.events("long", turn.turn_id, whole.epoch, index)
                first = await anext(aiter(events))
                found[name].append(1000 * (time.perf_counter() - begun))
                if first.index != index:
                    raise RuntimeError("another event came first")
                await events.aclose()  # type: ignore[attr-defined]
    return {"events": whole.index, **{name: spread(runs) for name, runs in found.items()}}


def resume_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    return [
        (f"first of {result['events']} events, {name}, ms", str(runs))
        for name, runs in result.items()
        if name != "events"
    ]


async def measure_executors(place: Place, pairs: int) -> dict[str, Any]:
    """Measure turns a second of one executor and of two, when tools take most of the time and slots are few."""
    call = sleep_call(TOOL_SECONDS)
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(connect_bus(place.bus))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        await tasks.start(serve, bus, SleeperActor())
        await stack.enter_async_context(inference(place, ECHO))
        register = await open_register(bus)
        await tasks.start(serve, bus, AgenticSystemActor(register))
        api = client_of(AgenticSystem, bus)
        names = [f"tools {number}" for number in range(TOOL_AGENTS)]
        for name in names:
            await api.create(sleepy_agent(name))

        async def take(name: str) -> None:
            message = Message(role=Role.user, content=call)
            await api.execute(AgenticSystemExecuteRequest(name, [message], turn_history=[]))

        async def measure(count: int) -> dict[str, float]:
            async with AsyncExitStack() as helpers:
                for number in range(count):
                    command = helper("turns", place.bus, str(TOOL_SLOTS))
                    await helpers.enter_async_context(
                        running(command, place.log(f"executor {number}"))
                    )
                begun = time.perf_counter()
                async with anyio.create_task_group() as turns:
                    for name in names:
                        turns.start_soon(take, name)
                return {"turns_per_second": len(names) / (time.perf_counter() - begun)}

        values = await alternate({"one": lambda: measure(1), "two": lambda: measure(2)}, pairs)
        tasks.cancel_scope.cancel()
    speed = {name: runs["turns_per_second"] for name, runs in values.items()}
    return {
        **{name: spread(runs) for name, runs in speed.items()},
        "ratio": ratios(speed["two"], speed["one"]),
    }


def executor_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    return [
        (f"turns/s of one executor with {TOOL_SLOTS} slots", str(result["one"])),
        ("turns/s of two", str(result["two"])),
        ("two / one", str(result["ratio"])),
    ]


async def run_executor(url: str, slots: str) -> None:
    """Run an executor until SIGTERM, at which it gives its leases back, as a worker does."""
    async with connect_bus(url) as bus, anyio.create_task_group() as tasks:
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            await tasks.start(Executor(bus, slots=int(slots)).run)
            announce(READY_LINE)
            async for _ in signals:
                break
            tasks.cancel_scope.cancel()


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    return [
        *system_rows(result, "chat", "turn"),
        ("turn / chat, tokens/s", str(result["ratio"])),
        ("first token of a turn later, ms", str(result["first_token_later_ms"])),
    ]


if __name__ == "__main__":
    run(run_executor, *sys.argv[1:])
