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
from .functions.settings import FunctionSettings
from .mcp.settings import McpSettings
from .settings import ToolsConfig


def tool_starts(bus: Bus, config: ToolsConfig) -> Mapping[str, Start]:
    """Return what to supervise, by name: the built-in tools, each function, each MCP server."""
    return {**_builtin(bus, config), **_functions(bus, config), **_mcp(bus, config)}


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


def _functions(bus: Bus, config: ToolsConfig) -> Mapping[str, Start]:
    def start_of(settings: FunctionSettings) -> Start:
        async def start(*, task_status: TaskStatus[Any]) -> None:
            from .functions.tool import FunctionTool

            async with FunctionTool(settings) as tool:
                await serve(bus, ToolsActor([tool]), task_status=task_status)

        return start

    return {f"function {one.tool_name}": start_of(one) for one in config.functions}


def _mcp(bus: Bus, config: ToolsConfig) -> Mapping[str, Start]:
    def start_of(settings: McpSettings) -> Start:
        async def start(*, task_status: TaskStatus[Any]) -> None:
            from .mcp.server import McpServer

            await McpServer(bus, settings).run(task_status=task_status)

        return start

    return {f"MCP server {one.name}": start_of(one) for one in config.mcp}
