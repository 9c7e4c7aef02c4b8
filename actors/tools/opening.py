"""The tools of a deployment, by what is supervised on its own."""

from __future__ import annotations

from collections.abc import Mapping

from ...bus.bus import Bus
from ..supervision import Start
from .settings import ToolsConfig


def tool_starts(bus: Bus, config: ToolsConfig) -> Mapping[str, Start]:
    """Return what to supervise, by name: the built-in tools, each function, each MCP server."""
    return {}
