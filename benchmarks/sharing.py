"""Two inference workers against one, where the slots of the engine are what limits; and against two that share nothing.

Each system has a model of its own, and all stay up. The script says a token every 20 ms, which costs next to no processor time,
so that two workers have room on any machine.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from statistics import quantiles
from typing import Any

from .child import Child
from .load import Heard, Load
from .numbers import Measure, alternate, ratios, spread
from .topology import SCRIPTED, Place, chat_frame, client, gateway, inference

TOKENS, SLOTS = 16, 4
SYSTEMS: Mapping[str, int] = {"one": 1, "two": 2, "apart": 2}
"""How many workers each has; those of ``apart`` share nothing."""
CLIENTS = {"busy": 4 * SLOTS, "even": 2 * SLOTS}
"""As many again as two workers have slots, and just as many."""
ROUNDS = 12


def model(name: str) -> str:
    """Return the configuration of a system."""
    return f'[[models]]\nname = "{name}"\nengine = "scripted"\nsource = "slow:{TOKENS}"\nslots = {SLOTS}\n'


async def measure_sharing(place: Place, pairs: int, *, tiny: bool = False) -> dict[str, Any]:
    """Measure streams a second, and for how long their first token is waited for."""
    unshared = [sys.executable, "-m", f"{__package__}.unshared"]
    async with AsyncExitStack() as stack:
        for name, workers in SYSTEMS.items():
            for _ in range(workers):
                program = unshared if name == "apart" else None
                await stack.enter_async_context(inference(place, model(name), program=program))
        _, url = await stack.enter_async_context(gateway(place, models=SCRIPTED))
        load = await stack.enter_async_context(client(place))
        rounds = 1 if tiny else ROUNDS

        def of(name: str) -> Measure:
            async def measure() -> dict[str, float]:
                found: dict[str, float] = {}
                for how, clients in CLIENTS.items():
                    question = Load(url, [chat_frame(name, "Count.")] * clients, rounds)
                    found |= {f"{how}_{key}": x for key, x in (await _ask(load, question)).items()}
                return found

            return measure

        values = await alternate({name: of(name) for name in SYSTEMS}, pairs, warm=False)
    return {
        **{
            name: {quantity: spread(runs) for quantity, runs in quantities.items()}
            for name, quantities in values.items()
        },
        **{
            f"ratio_{above}_{below}_{how}": _ratio(values, above, below, how)
            for above, below in (("two", "one"), ("apart", "one"), ("two", "apart"))
            for how in CLIENTS
        },
    }


async def _ask(load: Child, question: Load) -> dict[str, float]:
    heard = await load.ask(question, Heard)
    return {
        "streams_per_second": len(heard.whole) / heard.seconds,
        "wait_p95_ms": 1000 * quantiles(heard.first, n=20)[-1],
    }


def _ratio(
    values: Mapping[str, Mapping[str, Sequence[float]]], above: str, below: str, how: str
) -> Any:
    quantity = f"{how}_streams_per_second"
    return ratios(values[above][quantity], values[below][quantity])


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    found = []
    for how, clients in CLIENTS.items():
        for name in SYSTEMS:
            numbers = result[name]
            label = {"one": "one worker", "two": "two", "apart": "two that share nothing"}[name]
            speed, wait = numbers[f"{how}_streams_per_second"], numbers[f"{how}_wait_p95_ms"]
            found += [
                (f"{clients} clients, {label}: streams/s", str(speed)),
                (f"{clients} clients, {label}: p95 wait, ms", str(wait)),
            ]
        found += [
            (f"{clients} clients, two / one", str(result[f"ratio_two_one_{how}"])),
            (f"{clients} clients, two apart / one", str(result[f"ratio_apart_one_{how}"])),
        ]
    return found
