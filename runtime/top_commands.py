"""``ayllu top``: what actors, models, agents and streams do, from the command line. It talks to the bus itself."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

import anyio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ..actors.agents.streams import AGENTS
from ..bus.bus import Bus, connect
from ..bus.transport import ServiceStats
from ..schemas import BusError, encode
from ..schemas.tasks import first_of
from .dead_letters import CONNECT_SECONDS, bus_of
from .terminal import one_line
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

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask_services)
                for stream in named[:MOST_ROWS]:
                    tasks.start_soon(ask_consumers, stream)
                subjects = next((one.subjects for one in streams if one.name == AGENTS.name), 0)
                turns, left_out = await self._turns.look(subjects)
        except* BusError as group:
            raise first_of(group) from None
        return Look(time.monotonic(), services, streams, consumers, turns, left_out)


@asynccontextmanager
async def observing(bus: Bus) -> AsyncIterator[Observer]:
    """Open what looks at a bus."""
    async with jetstream_facts(bus.transport) as facts:
        yield Observer(bus, facts)


class Show(Protocol):
    """Shows what was seen; ``problem`` is why nothing was seen this time."""

    def __call__(self, top: Top | None, problem: str = "") -> None: ...


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
                scope.deadline = math.inf
                with _showing(live=live, json=options.json) as show:
                    await watch(observer.look, show, once=once)
    except TimeoutError as error:
        raise BusError(
            "the bus does not answer; are the nats-server and the address right?"
        ) from error


async def watch(
    look: Callable[[], Awaitable[Look]],
    show: Show,
    *,
    once: bool,
    pause: float = PAUSE_SECONDS,
) -> None:
    """Look again and again, and show what was seen; a bus that is away for a while is waited for.

    Args:
        look: looks.
        show: shows.
        once: ends when something was shown.
        pause: between looks, in seconds.

    Raises:
        BusError: the bus does not tell, and never will; or not now, and it is to be shown once.
        TimeoutError: likewise.
    """
    before: Look | None = None
    while True:
        try:
            with anyio.fail_after(LOOK_SECONDS):
                now = await look()
        except (BusError, TimeoutError) as error:
            if once or (isinstance(error, BusError) and not error.retryable):
                raise
            show(None, str(error) or "the bus does not answer")
        else:
            # Rates take two looks.
            if before is not None or not once:
                show(top_of(before, now))
                if once:
                    return
            before = now
        await anyio.sleep(pause)


@contextmanager
def _showing(*, live: bool, json: bool) -> Iterator[Show]:
    if json:
        yield _write_json
    elif live:
        console = Console(file=sys.stdout)
        with Live(console=console, screen=True, auto_refresh=False) as view:
            shown: RenderableType = ""

            def show(top: Top | None, problem: str = "") -> None:
                nonlocal shown
                shown = shown if top is None else top_view(top)
                said = [Text(one_line(problem), "red")] if problem else []
                view.update(Group(*said, shown), refresh=True)

            yield show
    else:
        yield _write_tables


def _write_json(top: Top | None, problem: str = "") -> None:
    if top is None:
        sys.stderr.write(f"ayllu top: {problem}\n")
        return
    sys.stdout.write(f"{encode(top).decode()}\n")
    sys.stdout.flush()


def _write_tables(top: Top | None, problem: str = "") -> None:
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=PLAIN_WIDTH, color_system=None)
    console.print(problem if top is None else top_view(top))
