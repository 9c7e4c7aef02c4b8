"""The tools of a deployment, by what is supervised on its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
from anyio.abc import TaskStatus

from ...bus.bus import Bus
from ...bus.service import serve
from ..supervision import Start
from .actor import ToolsActor
from .settings import ToolsConfig


def tool_starts(bus: Bus, config: ToolsConfig) -> Mapping[str, Start]:
    """Return what to supervise, by name: the built-in tools, each function, each MCP server."""
    return {**_builtin(bus, config)}


def _builtin(bus: Bus, config: ToolsConfig) -> Mapping[str, Start]:
    async def start(*, task_status: TaskStatus[Any]) -> None:
        # Only these workers need what these modules import.
        from .builtin import builtin_tools

        async with builtin_tools(config) as tools:
            if not tools:  # There is nothing to be asked for.
                task_status.started()
                await anyio.sleep_forever()
            await serve(bus, ToolsActor(tools), task_status=task_status)

    return {"built-in tools": start} if config.builtin else {}
