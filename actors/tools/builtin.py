"""The built-in tools, as far as this machine can run them."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio.to_thread

from ...schemas import BuiltinTool, Content, InvalidRequest, ToolRequest, Unsupported
from ..sandbox import require_sandbox
from .code_interpreter import CodeInterpreter
from .image_gen import ImageGen
from .math import Math
from .settings import (
    IMAGE_SECONDS,
    SEARCH_SECONDS,
    SPARE_SECONDS,
    CodeInterpreterSettings,
    ImageGenSettings,
    ToolsConfig,
    WebSearchSettings,
)
from .tool import Tool
from .web_search import WebSearch

log = logging.getLogger(__name__)

_WRITE = "write these lines into its configuration, and start its tools again:"
_SEARCH = """\
[tools.web_search]
provider = "brave"            # or "tavily", or "searxng" with the url of your instance
key_variable = "BRAVE_API_KEY"     # the environment variable with the key"""
_IMAGES = """\
[tools.image_gen]
url = "https://api.openai.com/v1"
model = "gpt-image-1"
key_variable = "OPENAI_API_KEY"    # the environment variable with the key"""


@asynccontextmanager
async def builtin_tools(config: ToolsConfig) -> AsyncIterator[list[Tool]]:
    """Open the built-in tools of a deployment; what they hold open is closed at the end.

    What is not configured is offered, and says what is missing. Code is not offered where there is no sandbox: another worker
    may have one.
    """
    async with AsyncExitStack() as stack:
        tools: list[Tool] = []
        for name in config.builtin:
            tool = await _opened(name, config, stack)
            if tool is not None:
                tools.append(tool)
        yield tools


async def _opened(name: BuiltinTool, config: ToolsConfig, stack: AsyncExitStack) -> Tool | None:
    match name:
        case BuiltinTool.math:
            return Math()
        case BuiltinTool.code_interpreter:
            return await _code_interpreter(config.code_interpreter)
        case BuiltinTool.web_search:
            return await _web_search(config.web_search, stack)
        case BuiltinTool.image_gen:
            return await _image_gen(config.image_gen, stack)


async def _code_interpreter(settings: CodeInterpreterSettings) -> Tool | None:
    try:
        await anyio.to_thread.run_sync(require_sandbox)
    except Unsupported as error:
        log.warning("the tool code_interpreter is not offered here: %s", error)
        return None
    return CodeInterpreter(settings)


async def _web_search(settings: WebSearchSettings | None, stack: AsyncExitStack) -> Tool:
    if settings is None:
        return Unconfigured(WebSearch, SEARCH_SECONDS, f"{_WRITE}\n{_SEARCH}")
    try:
        tool = WebSearch(settings, _key(settings.key_variable))
    except InvalidRequest as error:
        return _without_key(WebSearch, settings.seconds, error)
    return await stack.enter_async_context(tool)


async def _image_gen(settings: ImageGenSettings | None, stack: AsyncExitStack) -> Tool:
    if settings is None:
        return Unconfigured(ImageGen, IMAGE_SECONDS, f"{_WRITE}\n{_IMAGES}")
    try:
        tool = ImageGen(settings, _key(settings.key_variable))
    except InvalidRequest as error:
        return _without_key(ImageGen, settings.seconds, error)
    return await stack.enter_async_context(tool)


class Unconfigured:
    """A `Tool` that is known, but cannot be run: calls say why.

    It says of itself what the tool says that it stands for: agents that are made now keep that, and have the tool later.

    Args:
        tool: the class of that tool.
        seconds: how long its server may take.
        why: what is missing.
    """

    def __init__(self, tool: type[WebSearch | ImageGen], seconds: float, why: str) -> None:
        self.name: str = tool.name
        self.idempotent: bool = tool.idempotent
        self.max_output: int = tool.max_output
        self.seconds = seconds + SPARE_SECONDS
        self.description: str = tool.description
        self.parameters: Mapping[str, Any] = tool.parameters
        self._why = why

    async def run(self, request: ToolRequest) -> Content:
        """Fail.

        Raises:
            Unsupported: in any case.
        """
        raise Unsupported(f"{request.tool_name} is not configured in this deployment: {self._why}")


def _without_key(tool: type[WebSearch | ImageGen], seconds: float, error: InvalidRequest) -> Tool:
    log.warning("the tool %s cannot be run: %s", tool.name, error)
    return Unconfigured(tool, seconds, error.message)


def _key(variable: str | None) -> str | None:
    """Return the key that an environment variable holds; errors tell its name only."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InvalidRequest(f"`key_variable`: the environment of the tools has no {variable}")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidRequest(f"`key_variable`: what {variable} holds is no key")
    return key
