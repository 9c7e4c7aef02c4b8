"""The real model: concurrent chats through the gateway, beside the engine called directly in a process of its own.

``python -m benchmarks.model`` is that process.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import anyio
import msgspec

from ayllu.actors.engines.engine import ChatMessage, Generation, Prompt
from ayllu.actors.registry import ModelSpec, build_engine
from ayllu.schemas import SamplingParams

from .child import answer_lines, helper, run, running
from .load import Heard, Load
from .numbers import alternate, ratios, spread
from .topology import REAL, Place, chat_frame, client, gateway, inference

CHATS = 8
MAX_TOKENS = 48
SUBJECTS = ("rivers", "bread", "the moon", "ants", "glass", "chess", "salt", "bridges")


class Direct(msgspec.Struct):
    """What the engine is asked for: how many of the chats, and how long."""

    chats: int
    max_tokens: int


class Answered(msgspec.Struct):
    """What came of it, as `Heard`."""

    seconds: float = 0.0
    tokens: int = 0
    pieces: int = 0
    first: list[float] = []


def question(number: int) -> str:
    """Return what a chat begins with; the answers are long."""
    return f"Write a long story about {SUBJECTS[number % len(SUBJECTS)]}."


async def serve_engine(spec: str) -> None:
    """Answer lines with an engine and nothing else."""
    async with build_engine(msgspec.json.decode(spec, type=ModelSpec)) as engine:

        async def chat(number: int, max_tokens: int, answered: Answered) -> None:
            begun = time.perf_counter()
            prompt = Prompt(messages=[ChatMessage("user", question(number))])
            generation = Generation(SamplingParams(), max_tokens=max_tokens)
            heard = False
            async for delta in engine.generate(prompt, generation):
                if delta.text and not heard:
                    heard = True
                    answered.first.append(time.perf_counter() - begun)
                answered.pieces += 1
                answered.tokens += delta.completion_tokens

        async def answer(line: bytes) -> Answered:
            direct, answered = msgspec.json.decode(line, type=Direct), Answered()
            begun = time.perf_counter()
            async with anyio.create_task_group() as tasks:
                for number in range(direct.chats):
                    tasks.start_soon(chat, number, direct.max_tokens, answered)
            answered.seconds = time.perf_counter() - begun
            return answered

        await answer_lines(answer)


async def measure_model(
    place: Place,
    pairs: int,
    *,
    models: str = REAL,
    chats: int = CHATS,
    max_tokens: int = MAX_TOKENS,
) -> dict[str, Any]:
    """Measure tokens a second and the time to the first one, through the gateway and directly."""
    [spec] = msgspec.toml.decode(models)["models"]
    command = helper("model", msgspec.json.encode(spec).decode())
    async with (
        running(command, place.log("direct")) as direct,
        inference(place, models),
        gateway(place) as (_, url),
        client(place) as load,
    ):
        frames = [chat_frame(spec["name"], question(n), max_tokens) for n in range(chats)]
        # Both are counted in tokens of the direct run: greedy answers are the same.
        expected = (await direct.ask(Direct(chats, max_tokens), Answered)).tokens

        async def ask_gateway() -> dict[str, float]:
            heard = await load.ask(Load(url, frames, 1), Heard)
            return _quantities(heard.seconds, expected, heard.events, heard.first)

        async def ask_engine() -> dict[str, float]:
            found = await direct.ask(Direct(chats, max_tokens), Answered)
            return _quantities(found.seconds, found.tokens, found.pieces, found.first)

        values = await alternate({"gateway": ask_gateway, "engine": ask_engine}, pairs)
    return {
        **{
            name: {quantity: spread(runs) for quantity, runs in quantities.items()}
            for name, quantities in values.items()
        },
        "ratio": ratios(
            values["gateway"]["tokens_per_second"], values["engine"]["tokens_per_second"]
        ),
    }


def _quantities(seconds: float, tokens: int, events: int, first: list[float]) -> dict[str, float]:
    return {
        "tokens_per_second": tokens / seconds,
        "first_token_ms": 1000 * median(first),
        "events": events,
    }


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    lines = []
    for name in ("gateway", "engine"):
        lines += [
            (f"{name}: tokens/s", str(result[name]["tokens_per_second"])),
            (f"{name}: first token, ms", str(result[name]["first_token_ms"])),
            (f"{name}: events", str(result[name]["events"])),
        ]
    return [*lines, ("gateway / engine", str(result["ratio"]))]


if __name__ == "__main__":
    import sys

    run(serve_engine, sys.argv[1])
