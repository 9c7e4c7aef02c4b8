"""What a turn of an agent costs beside the plain chat that is in it: the same tokens, made durable, and followed.

Both go through the same gateway and the same model, in turn; a turn has one step of the model and no history.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ayllu.client import connect
from ayllu.runtime.supervisor import BUS_URL_VARIABLE
from ayllu.schemas import AgenticSystemCreateRequest

from .child import AYLLU, Child, running
from .load import Heard, Load
from .numbers import Measure, alternate, ratios, spread
from .streams import ROUNDS, TOKENS
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
            return lambda: _measure(load, question, parts)

        values = await alternate({"chat": of(chats), "turn": of(turns)}, pairs)
    speed = {name: runs["tokens_per_second"] for name, runs in values.items()}
    first = {name: runs["first_token_ms"] for name, runs in values.items()}
    return {
        **{
            name: {quantity: spread(runs) for quantity, runs in quantities.items()}
            for name, quantities in values.items()
        },
        "ratio": ratios(speed["turn"], speed["chat"]),
        "first_token_later_ms": spread(
            [turn - chat for turn, chat in zip(first["turn"], first["chat"], strict=True)]
        ),
    }


async def _measure(load: Child, question: Load, parts: dict[str, Child]) -> dict[str, float]:
    before = {name: part.cpu_seconds for name, part in parts.items()}
    heard = await load.ask(question, Heard)
    tokens = len(question.requests) * question.rounds * TOKENS
    if heard.events < tokens:
        raise RuntimeError(f"of {tokens} tokens {heard.events} came")
    return {
        "tokens_per_second": tokens / heard.seconds,
        "first_token_ms": 1000 * median(heard.first),
        **{
            f"{name}_cpu_us_per_token": 1e6 * (part.cpu_seconds - before[name]) / tokens
            for name, part in parts.items()
        },
    }


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    lines = []
    for name in ("chat", "turn"):
        found = result[name]
        cpu = ", ".join(
            f"{quantity.removesuffix('_cpu_us_per_token')} {values.median:.1f}"
            for quantity, values in found.items()
            if quantity.endswith("_cpu_us_per_token")
        )
        lines += [
            (f"{name}: tokens/s", str(found["tokens_per_second"])),
            (f"{name}: first token, ms", str(found["first_token_ms"])),
            (f"{name}: us of processor a token", cpu),
        ]
    return [
        *lines,
        ("turn / chat, tokens/s", str(result["ratio"])),
        ("first token of a turn later, ms", str(result["first_token_later_ms"])),
    ]
