"""``ayllu top``: what actors, models, agents and streams do, from the command line. It talks to the bus itself."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

import anyio
from rich.console import Console
from rich.live import Live

from ..actors.agents.records import AGENTS
from ..bus.bus import Bus, connect
from ..bus.transport import ServiceStats
from ..schemas import BusError, encode
from .dead_letters import CONNECT_SECONDS, bus_of
from .top import INTERNAL, MOST_ROWS, Look, Top, TurnFacts, top_of
from .top_streams import ConsumerFacts, JetStreamFacts, StreamFacts, jetstream_facts
from .top_turns import TurnWatch
from .top_view import top_view

PAUSE_SECONDS = 1.0
"""Between looks: each asks all actors, and the nats-server some ten questions and two or three for each turn."""
LOOK_SECONDS = 10.0
PLAIN_WIDTH = 140
"""How wide the tables may be where there is no terminal."""


class Observer:
    """Looks at a bus; see `observing`."""

    def __init__(self, bus: Bus, facts: JetStreamFacts) -> None:
        self._bus = bus
        self._facts = facts
        self._turns = TurnWatch(bus, facts)

    async def look(self) -> Look:
        """Look once.

        Raises:
            BusError: the bus does not tell.
        """
        services: list[ServiceStats] = []
        consumers: list[ConsumerFacts] = []
        turns: list[TurnFacts] = []
        left_out = 0
        streams = await self._facts.streams()
        named = [one for one in streams if not one.name.startswith(INTERNAL)]

        async def ask_services() -> None:
            services.extend(await self._bus.transport.stats(""))

        async def ask_consumers(stream: StreamFacts) -> None:
            consumers.extend(await self._facts.consumers(stream))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask_services)
            for stream in named[:MOST_ROWS]:
                tasks.start_soon(ask_consumers, stream)
            subjects = next((one.subjects for one in streams if one.name == AGENTS.name), 0)
            turns, left_out = await self._turns.look(subjects)
        return Look(time.monotonic(), services, streams, consumers, turns, left_out)


@asynccontextmanager
async def observing(bus: Bus) -> AsyncIterator[Observer]:
    """Open what looks at a bus."""
    async with jetstream_facts(bus.transport) as facts:
        yield Observer(bus, facts)


class Show(Protocol):
    """Shows what was seen."""

    def __call__(self, top: Top) -> None: ...


async def run_top(bus_url: str | None, data_dir: Path, options: argparse.Namespace) -> None:
    """Show what is done on a bus, once, or until somebody has seen enough.

    Args:
        bus_url: the bus; None for that of ``ayllu up`` in the data directory.
        data_dir: where ``ayllu up`` keeps its data.
        options: how it is shown.

    Raises:
        InvalidRequest: there is no bus to look at.
        BusError: the bus does not answer.
    """
    url = bus_url or bus_of(data_dir)
    live = not options.json and not options.once and Console(file=sys.stdout).is_terminal
    once = options.once or not (live or options.json)
    try:
        with anyio.fail_after(CONNECT_SECONDS) as scope:
            async with connect(url, name="ayllu top") as bus, observing(bus) as observer:
                with _showing(live=live, json=options.json) as show:
                    before: Look | None = None
                    while True:
                        scope.deadline = anyio.current_time() + LOOK_SECONDS
                        now = await observer.look()
                        # Rates take two looks.
                        if before is not None or not once:
                            show(top_of(before, now))
                        if before is not None and once:
                            return
                        before = now
                        await anyio.sleep(PAUSE_SECONDS)
    except TimeoutError as error:
        raise BusError(
            "the bus does not answer; are the nats-server and the address right?"
        ) from error


@contextmanager
def _showing(*, live: bool, json: bool) -> Iterator[Show]:
    if json:
        yield _write_json
    elif live:
        console = Console(file=sys.stdout)
        with Live(console=console, screen=True, auto_refresh=False) as view:
            yield lambda top: view.update(top_view(top), refresh=True)
    else:
        yield _write_tables


def _write_json(top: Top) -> None:
    sys.stdout.write(f"{encode(top).decode()}\n")
    sys.stdout.flush()


def _write_tables(top: Top) -> None:
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=PLAIN_WIDTH, color_system=None)
    console.print(top_view(top))
