"""What agents that work together cost: turns a second with more and more executors, a turn that starts another one, and a storm
of messages into inboxes.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import msgspec

from ayllu.actors.agents.actor import AgenticSystemActor
from ayllu.actors.agents.records import Execute
from ayllu.actors.agents.register import Register, open_register
from ayllu.actors.agents.streams import inbox_subject
from ayllu.bus.bus import Bus
from ayllu.bus.bus import connect as connect_bus
from ayllu.bus.client import client as client_of
from ayllu.bus.service import serve
from ayllu.bus.subjects import ROOT, encode_token
from ayllu.bus.transport import Message as Sent
from ayllu.schemas import (
    AgenticSystem,
    AgenticSystemCreateRequest,
    AgenticSystemExecuteRequest,
    Message,
    Role,
    SubAgent,
    encode,
)

from .child import Child, helper, running
from .idle import resident_kib
from .numbers import Measure, Spread, alternate, number, ratios, spread
from .topology import Place, inference
from .turns import ECHO, SleeperActor, sleep_call, sleepy_agent

T = TypeVar("T")

COUNTS = (1, 2, 4)
AGENTS, TURNS_EACH = 200, 5
HOPS = 20
INBOXES, MESSAGES = 50, 10_000
AT_ONCE = 64
"""How many commands or messages are stored at the same time."""
SLOTS = 256
PATIENCE = 300.0
ENDS = f"{ROOT}.event.turn.*.*"
SAID = [Message(role=Role.user, content="Go.")]
ASK = '<tool_call>[{"name": "ask", "arguments": {"message": "Go."}}]</tool_call>'


class Ends:
    """Counts the turns that end, by the events that tell so; see `counting`."""

    def __init__(self, names: Iterable[str]) -> None:
        self.count = 0
        self._tokens = frozenset(map(encode_token, names))
        self._wanted = 0
        self._reached = anyio.Event()

    def on_end(self, event: Sent) -> None:
        """Count one."""
        self.count += event.subject.split(".")[4] in self._tokens
        if self.count >= self._wanted:
            self._reached.set()

    async def wait(self, wanted: int) -> None:
        """Wait until so many have ended."""
        self._wanted, self._reached = wanted, anyio.Event()
        if self.count < wanted:
            with anyio.fail_after(PATIENCE):
                await self._reached.wait()


@asynccontextmanager
async def counting(bus: Bus, names: Iterable[str]) -> AsyncIterator[Ends]:
    """Count the turns of some agents that end within the block; those of other measurements may end, too."""
    ends = Ends(names)
    async with bus.transport.subscribe(ENDS, ends.on_end):
        yield ends


async def create_agents(register: Register, names: Iterable[str]) -> None:
    """Create agents of one step as records: without the half second in which `create` looks for tools."""
    request = AgenticSystemCreateRequest(uuid="team template", instructions="Repeat.", model="echo")
    if await register.agents.get(request.uuid) is None:
        await AgenticSystemActor(register).create(request)
    record = await register.record(request.uuid)

    async def create(name: str) -> None:
        config = msgspec.structs.replace(request, uuid=name)
        await register.agents.put(name, encode(msgspec.structs.replace(record, config=config)))

    await each(create, names)


async def each(do: Callable[[T], Awaitable[None]], items: Iterable[T]) -> None:
    """Do something with each of many, some at once."""
    limiter = anyio.CapacityLimiter(AT_ONCE)

    async def one(item: T) -> None:
        async with limiter:
            await do(item)

    async with anyio.create_task_group() as tasks:
        for item in items:
            tasks.start_soon(one, item)


@asynccontextmanager
async def executors(place: Place, count: int) -> AsyncIterator[list[Child]]:
    """Run executors, each in a process of its own."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                running(helper("turns", place.bus, str(SLOTS)), place.log(f"executor {one}"))
            )
            for one in range(count)
        ]


async def measure_teams(place: Place, pairs: int, *, tiny: bool = False) -> dict[str, Any]:
    """Measure all three."""
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(connect_bus(place.bus))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        await stack.enter_async_context(inference(place, ECHO))
        register = await open_register(bus)
        await tasks.start(serve, bus, AgenticSystemActor(register), SleeperActor())
        return {
            "executors": await _measure_executors(place, bus, register, min(pairs, 3), tiny=tiny),
            "hop": await _measure_hop(place, bus, register, pairs, tiny=tiny),
            "inbox": await _measure_inbox(place, bus, register, tiny=tiny),
        }


async def _measure_executors(
    place: Place, bus: Bus, register: Register, pairs: int, *, tiny: bool
) -> dict[str, Any]:
    names = [f"member {one}" for one in range(4 if tiny else AGENTS)]
    await create_agents(register, names)
    created = {name: (await register.record(name)).created for name in names}
    rounds = 0

    async def accept(turn: tuple[str, int, int]) -> None:
        name = turn[0]
        command = Execute(turn=str(turn[1:]), messages=SAID, created=created[name], turn_history=[])
        await register.ask(name, command, f"{name}/{turn[1:]}")

    async def measure(count: int) -> dict[str, float]:
        nonlocal rounds
        rounds += 1
        turns = [(name, rounds, one) for one in range(TURNS_EACH) for name in names]
        async with executors(place, count), counting(bus, names) as ends:
            begun = time.perf_counter()
            await each(accept, turns)
            await ends.wait(len(turns))
            return {"turns_per_second": len(turns) / (time.perf_counter() - begun)}

    measures: dict[str, Measure] = {str(count): partial(measure, count) for count in COUNTS}
    values = await alternate(measures, pairs, warm=not tiny)
    speed = {name: runs["turns_per_second"] for name, runs in values.items()}
    return {
        **{name: spread(runs) for name, runs in speed.items()},
        "ratio_2": ratios(speed["2"], speed["1"]),
        "ratio_4": ratios(speed["4"], speed["1"]),
    }


async def _measure_hop(
    place: Place, bus: Bus, register: Register, pairs: int, *, tiny: bool
) -> dict[str, Any]:
    """Measure turns one after the other: plain ones, those that call a tool, and those that let another agent take one."""
    api = client_of(AgenticSystem, bus)
    await create_agents(register, ["team plain"])
    await api.create(sleepy_agent("team tool"))
    asking = AgenticSystemCreateRequest(
        uuid="team asking",
        instructions="Repeat.",
        model="echo",
        sub_agents=[SubAgent("ask", ["team plain"])],
        max_steps=2,
    )
    await api.create(asking)

    async def measure(agent: str, text: str, kinds: int) -> dict[str, float]:
        count = 2 if tiny else HOPS
        begun = time.perf_counter()
        for _ in range(count):
            messages = [Message(role=Role.user, content=text)]
            request = AgenticSystemExecuteRequest(agent, messages, turn_history=[])
            done = await api.execute(request)
            if len(done.turn.steps) != kinds:
                raise RuntimeError(f"a turn of {agent!r} took {len(done.turn.steps)} steps")
        return {"ms": 1000 * (time.perf_counter() - begun) / count}

    async with executors(place, 1):
        values = await alternate(
            {
                "plain": partial(measure, "team plain", "Go.", 1),
                "tool": partial(measure, "team tool", sleep_call(0.0), 3),
                "hop": partial(measure, "team asking", ASK, 3),
            },
            pairs,
        )
    ms = {name: runs["ms"] for name, runs in values.items()}
    return {
        **{f"{name}_ms": spread(runs) for name, runs in ms.items()},
        "ratio": ratios(ms["hop"], ms["plain"]),
        "more_than_plain_ms": _differences(ms["hop"], ms["plain"]),
        "more_than_tool_ms": _differences(ms["hop"], ms["tool"]),
    }


def _differences(above: Sequence[float], below: Sequence[float]) -> Spread:
    return spread([first - second for first, second in zip(above, below, strict=True)])


async def _measure_inbox(
    place: Place, bus: Bus, register: Register, *, tiny: bool
) -> dict[str, Any]:
    """Let messages come into inboxes as fast as they are stored, and wait until each has had its turn."""
    names = [f"inbox {one}" for one in range(4 if tiny else INBOXES)]
    messages = 40 if tiny else MESSAGES
    await create_agents(register, names)
    payload = encode(SAID[0])

    async def publish(one: int) -> None:
        subject = inbox_subject(names[one % len(names)])
        await bus.storage.streams.append(subject, payload, msg_id=f"storm {one}")

    async with executors(place, 1) as (executor,), counting(bus, names) as ends:
        before = resident_kib(executor.pid)
        begun = time.perf_counter()
        await each(publish, range(messages))
        stored = time.perf_counter() - begun
        await ends.wait(messages)
        worked = time.perf_counter() - begun
        after, peak = resident_kib(executor.pid), peak_kib(executor.pid)
    return {
        "messages": messages,
        "agents": len(names),
        "stored_per_second": messages / stored,
        "turns_per_second": messages / worked,
        "before_mib": before / 1024,
        "peak_mib": peak / 1024,
        "after_mib": after / 1024,
    }


def peak_kib(pid: int) -> int:
    """Return the most memory that a process has had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise RuntimeError(f"the process {pid} has no resident memory")


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    executors_, hop, inbox = result["executors"], result["hop"], result["inbox"]
    storm = f"{inbox['messages']:,} messages to {inbox['agents']} inboxes"
    return [
        *((f"turns/s, executors: {count}", str(executors_[str(count)])) for count in COUNTS),
        ("two / one", str(executors_["ratio_2"])),
        ("four / one", str(executors_["ratio_4"])),
        ("a plain turn, ms", str(hop["plain_ms"])),
        ("one that calls a tool, ms", str(hop["tool_ms"])),
        ("one that asks another agent, ms", str(hop["hop_ms"])),
        ("asking / plain", str(hop["ratio"])),
        ("asking, more than plain, ms", str(hop["more_than_plain_ms"])),
        ("asking, more than a tool, ms", str(hop["more_than_tool_ms"])),
        (f"{storm}, stored/s", number(inbox["stored_per_second"])),
        ("turns/s of these", number(inbox["turns_per_second"])),
        (
            "executor's memory before, at most, after, MiB",
            ", ".join(number(inbox[f"{when}_mib"]) for when in ("before", "peak", "after")),
        ),
    ]
