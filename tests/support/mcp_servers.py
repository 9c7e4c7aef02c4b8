"""MCP servers under supervision, as a worker runs them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.node import node_with_packages

from ayllu.actors.supervision import Backoff, supervise
from ayllu.actors.tools.mcp.settings import McpSettings
from ayllu.actors.tools.opening import tool_starts
from ayllu.actors.tools.settings import ToolsConfig, check_tools
from ayllu.bus import Bus, client
from ayllu.bus.client import offered_tools
from ayllu.schemas import Content, ToolRequest, Tools

FAULTS = [sys.executable, "-I", str(Path(__file__).with_name("mcp_faults.py"))]
TIME = [sys.executable, "-m", "mcp_server_time", "--local-timezone=UTC"]
NODE_FOLDER = Path(__file__).parent.parent / "tools" / "mcp"
QUICK = Backoff(first=0.01, most=0.05)


@asynccontextmanager
async def running_tools(bus: Bus, config: ToolsConfig) -> AsyncIterator[None]:
    """Run all tools of a configuration under supervision, as a worker does."""
    check_tools(config)
    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as starting:
            for name, start in tool_starts(bus, config).items():
                starting.start_soon(tasks.start, partial(supervise, name, start, backoff=QUICK))
        yield
        tasks.cancel_scope.cancel()


def servers(*settings: McpSettings) -> ToolsConfig:
    """Return a configuration with these MCP servers, and nothing else."""
    return ToolsConfig(builtin=[], mcp=list(settings))


def faulty(mode: str = "", name: str = "faults", **settings: Any) -> McpSettings:
    """Return the server that does what goes wrong."""
    return McpSettings(name=name, command=[*FAULTS, *filter(None, [mode])], **settings)


async def called(bus: Bus, tool: str, /, **arguments: Any) -> Content:
    """Return what a tool answers."""
    return (await client(Tools, bus).call(ToolRequest(tool, arguments))).content


async def offered_when(bus: Bus, condition: Callable[[set[str]], bool]) -> set[str]:
    """Return the names of the tools that are offered, once they are as they shall be."""
    with anyio.fail_after(15):
        while not condition(names := set(await offered_tools(bus))):
            await anyio.sleep(0.02)
    return names


@pytest.fixture(scope="session")
def everything() -> list[str]:
    """Return the command of a packaged server for Node, which is installed from its lock file."""
    node = node_with_packages(NODE_FOLDER)
    package = NODE_FOLDER / "node_modules" / "@modelcontextprotocol" / "server-everything"
    return [node, str(package / "dist" / "index.js")]
