"""``ayllu trace``: when what happened in a turn, and in all turns that it has started, from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import anyio
from rich.console import Console, Group
from rich.live import Live

from ..client import connect
from ..schemas import TurnStatus, TurnTrace, TurnTraces
from .agent_commands import write_json
from .trace_view import trace_lines

LOOK_SECONDS = 1.0
"""How often a turn that is followed is looked at."""
FINAL = frozenset((TurnStatus.completed, TurnStatus.cancelled, TurnStatus.failed))


async def run_trace(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Do what ``ayllu trace`` was asked for.

    Raises:
        AylluError: there is no such turn, or the gateway is not there.
    """
    async with connect(url, token=token) as stack:
        traces = stack.api(TurnTraces)
        trace = await traces.trace(options.turn, options.agent)
        with following() as show:
            while options.follow and trace.status not in FINAL:
                show(trace)
                await anyio.sleep(LOOK_SECONDS)
                trace = await traces.trace(options.turn, trace.agent_uuid)
    if options.json:
        write_json(trace)
    else:
        write_lines(trace)


@contextmanager
def following() -> Iterator[Callable[[TurnTrace], None]]:
    """Give what shows a trace that is not the last one: on a terminal, where the next one replaces it."""
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        yield lambda _: None
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda trace: live.update(_shown(trace), refresh=True)


def _shown(trace: TurnTrace) -> Group:
    lines = trace_lines(trace, datetime.now(UTC))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(*lines)


def write_lines(trace: TurnTrace) -> None:
    """Print a trace: in colours on a terminal, else as plain text."""
    console = Console(file=sys.stdout, highlight=False)
    for line in trace_lines(trace, datetime.now(UTC)):
        if console.is_terminal:
            console.print(line, soft_wrap=True)
        else:
            sys.stdout.write(f"{line.plain.rstrip()}\n")
