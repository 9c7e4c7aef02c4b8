"""``ayllu graph``: who starts whom, from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator
from typing import TypeVar

from ..client import connect
from ..schemas import AylluError, Groups, MethodNotFound, PermissionDenied, Triggers, Unavailable
from .graph import mermaid
from .terminal import one_line

T = TypeVar("T")


async def run_graph(url: str, token: str | None, options: argparse.Namespace) -> None:
    """Print the flowchart of who starts whom.

    Raises:
        AylluError: the agents cannot be listed.
    """
    async with connect(url, token=token) as stack:
        agents = [agent async for agent in stack.agentic_system.list()]
        triggers, no_triggers = await _listed(stack.api(Triggers).list())
        groups, no_groups = await _listed(stack.api(Groups).list())
    sys.stdout.write(mermaid(agents, triggers, groups, tools=options.tools))
    for what, why in (("triggers", no_triggers), ("groups", no_groups)):
        if why is not None:
            sys.stdout.write(f"%% without {what}: {one_line(why.message)}\n")


async def _listed(items: AsyncIterator[T]) -> tuple[list[T], AylluError | None]:
    """Return what is listed; nothing, and why, where nobody is there who lists it or it is not for us."""
    try:
        return [item async for item in items], None
    except (MethodNotFound, PermissionDenied, Unavailable) as error:
        return [], error
