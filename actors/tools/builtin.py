"""The built-in tools, as far as this machine can run them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from .settings import ToolsConfig
from .tool import Tool


@asynccontextmanager
async def builtin_tools(config: ToolsConfig) -> AsyncIterator[list[Tool]]:
    """Open the built-in tools of a deployment; what they hold open is closed at the end."""
    # Not a product yet: each tool comes with its own commit.
    yield [] if config.builtin else []
