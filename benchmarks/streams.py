"""The scripted engine through the whole path, beside the bare pipe."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from statistics import median
from typing import Any

from .child import Child
from .load import Heard, Load
from .numbers import Measure, Spread, alternate, number, ratios, spread
from .topology import (
    SCRIPTED,
    Place,
    chat_frame,
    client,
    gateway,
    inference,
    pipe,
    single_frames,
)

TOKENS = 128
ROUNDS = {1: 16, 32: 8}
"""How many streams each connection has in one run, by the number of connections: a run takes about a second."""


async def measure_streams(
    place: Place, pairs: int, streams: int, *, tiny: bool = False
) -> dict[str, Any]:
    """Measure tokens a second and the time to the first one, of ayllu, of ayllu without merging, and of the pipe."""
    async with AsyncExitStack() as stack:
        publisher, pipe_gateway, pipe_url = await stack.enter_async_context(pipe(place, TOKENS))
        actor = await stack.enter_async_context(inference(place, SCRIPTED))
        merged, merged_url = await stack.enter_async_context(gateway(place))
        single, single_url = await stack.enter_async_context(
            gateway(place, program=single_frames())
        )
        load = await stack.enter_async_context(client(place))
        chat = chat_frame("count", "Count.")

        def of(url: str, request: str, **parts: Child) -> Measure:
            question = Load(url, [request] * streams, 1 if tiny else ROUNDS.get(streams, 3))
            return lambda: measure_load(load, question, {"client": load, **parts})

        values = await alternate(
            {
                "ayllu": of(merged_url, chat, gateway=merged, actor=actor),
                "single": of(single_url, chat, gateway=single, actor=actor),
                "pipe": of(pipe_url, "go", gateway=pipe_gateway, publisher=publisher),
            },
            pairs,
        )
    return _summary(values)


async def measure_load(load: Child, question: Load, parts: Mapping[str, Child]) -> dict[str, float]:
    """Let a load run, and return its tokens a second, its first token, and what each token costs each part."""
    before = {name: part.cpu_seconds for name, part in parts.items()}
    heard = await load.ask(question, Heard)
    tokens = len(question.requests) * question.rounds * TOKENS
    if heard.events < tokens:
        raise RuntimeError(f"of {tokens} tokens {heard.events} came")
    found = {
        "tokens_per_second": tokens / heard.seconds,
        "first_token_ms": 1000 * median(heard.first),
        "events_per_frame": heard.events / heard.frames,
    }
    for name, part in parts.items():
        found[f"{name}_cpu_us_per_token"] = 1e6 * (part.cpu_seconds - before[name]) / tokens
    return found


def _summary(values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    speed = {name: runs["tokens_per_second"] for name, runs in values.items()}
    return {
        **spreads(values),
        "ratio_merged": ratios(speed["ayllu"], speed["pipe"]),
        "ratio_single_frames": ratios(speed["single"], speed["pipe"]),
        "first_token_later_ms": first_token_later(values, "ayllu", "pipe"),
    }


def spreads(values: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the spread of each quantity of each system."""
    return {
        name: {quantity: spread(runs) for quantity, runs in quantities.items()}
        for name, quantities in values.items()
    }


def first_token_later(values: dict[str, dict[str, Any]], ours: str, bare: str) -> Spread:
    """Return by how many milliseconds the first token of one system comes later than that of another."""
    pairs = zip(values[ours]["first_token_ms"], values[bare]["first_token_ms"], strict=True)
    return spread([one - other for one, other in pairs])


def system_rows(result: dict[str, Any], *names: str) -> list[tuple[str, str]]:
    """Return the lines of the table that tell of each system."""
    lines = []
    for name in names:
        found = result[name]
        cpu = ", ".join(
            f"{quantity.removesuffix('_cpu_us_per_token')} {number(values.median)}"
            for quantity, values in found.items()
            if quantity.endswith("_cpu_us_per_token")
        )
        lines += [
            (f"{name}: tokens/s", str(found["tokens_per_second"])),
            (f"{name}: first token, ms", str(found["first_token_ms"])),
            (f"{name}: events a frame", str(found["events_per_frame"])),
            (f"{name}: us of processor a token", cpu),
        ]
    return lines


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    return [
        *system_rows(result, "ayllu", "single", "pipe"),
        ("ayllu / pipe", str(result["ratio_merged"])),
        ("one frame a token / pipe", str(result["ratio_single_frames"])),
        ("first token later than the pipe's, ms", str(result["first_token_later_ms"])),
    ]
