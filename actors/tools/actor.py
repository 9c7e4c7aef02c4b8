"""The tools actor: any number of tools behind the Tools API, offered to agents under their names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio

from ...bus.bus import Bus
from ...bus.client import TOOLS, offered_tools
from ...bus.subjects import operation_subject
from ...schemas import (
    OPERATIONS,
    Content,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    TooLarge,
    ToolList,
    ToolOffer,
    ToolRequest,
    ToolResponse,
    Tools,
    encode,
)
from .checking import by_name, problem_with
from .tool import Tool

_CALL = OPERATIONS["tools.call"]


class ToolsActor(Tools):
    """Runs tools.

    Args:
        tools: the tools; no two have the same name.

    Raises:
        InvalidRequest: two have the same name, or the parameters of one are no JSON schema.
    """

    service_name = "tools"

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = by_name(tools, "tools")
        self.models = frozenset(self._tools)
        """The names that calls are routed by."""
        self.service_metadata = {TOOLS: encode([offer_of(tool) for tool in tools]).decode()}
        self._calls = 0
        self._failed = 0

    def service_stats(self) -> dict[str, Any]:
        """Return how many calls were made, and how many of them failed."""
        return {"calls": self._calls, "failed": self._failed}

    async def call(self, request: ToolRequest) -> ToolResponse:
        """Run a tool; see `Tools.call`.

        Raises:
            NotFound: there is none of this name here.
            InvalidRequest: the arguments are wrong.
            DeadlineExceeded: it took longer than it may.
            TooLarge: it answered more than it may.
        """
        tool = self._tools.get(request.tool_name)
        if tool is None:
            raise NotFound(f"there is no tool {request.tool_name!r} here")
        problem = problem_with(tool.parameters, request.arguments)
        if problem is not None:
            raise InvalidRequest(problem)
        self._calls += 1
        try:
            content = await _within(tool, request)
        except Exception:
            self._failed += 1
            raise
        return ToolResponse(tool.name, content)


async def _within(tool: Tool, request: ToolRequest) -> Content:
    """Run a tool within its limits."""
    try:
        with anyio.fail_after(tool.seconds):
            content = await tool.run(request)
    except TimeoutError as error:
        raise DeadlineExceeded(f"it took longer than {tool.seconds:g} s") from error
    size = text_size(content)
    if size > tool.max_output:
        raise TooLarge(
            f"it answered {size} bytes of text, more than the {tool.max_output} that can be read"
        )
    return content


def text_size(content: Content) -> int:
    """Return how many bytes of text content has, without its attachments."""
    parts = content if isinstance(content, list) else [content]
    return sum(len(part.encode()) for part in parts if isinstance(part, str))


def offer_of(tool: Tool) -> ToolOffer:
    """Return what is told of a tool on the bus."""
    return ToolOffer(
        tool.name,
        tool.description,
        operation_subject(_CALL, tool.name),
        dict(tool.parameters),
        tool.idempotent,
        tool.seconds,
        tool.max_output,
        takes="request",
    )


class ToolListActor(ToolList):
    """Lists the tools that live actors offer.

    Args:
        bus: where they are.
    """

    service_name = "tool-list"

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def list(self) -> AsyncIterator[ToolOffer]:
        """List the tools, by name; see `ToolList.list`."""
        offers = await offered_tools(self._bus)
        for name in sorted(offers):
            yield offers[name]
