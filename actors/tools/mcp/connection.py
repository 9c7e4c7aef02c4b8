"""The connection to an MCP server: what it lists, and what it is called for, each within a deadline."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import anyio
import httpx2
import mcp_types as mcp
from anyio.abc import TaskStatus
from mcp.client import Client, IncomingMessage
from mcp.client.subscriptions import SubscriptionLost
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import TypeAdapter, ValidationError

from ....schemas import AylluError, EngineError, InvalidRequest, Unavailable
from .http import http_transport
from .settings import McpSettings
from .stdio import Stdio

for _name in ("mcp", "client", "httpx2"):  # They log each message, and what identifies a session.
    logging.getLogger(_name).setLevel(logging.WARNING)

MAX_PAGES = 50
"""Of a list of tools."""
LISTEN_AGAIN_SECONDS = 30.0
_CLIENT = mcp.Implementation(name="ayllu", version="1")
_RESULT: TypeAdapter[mcp.CallToolResult | mcp.InputRequiredResult] = TypeAdapter(
    mcp.CallToolResult | mcp.InputRequiredResult
)


class Connection:
    """A connection that is open; see `run_connection`.

    Attributes:
        doubted: set when the server's tools may have changed, or when it may have gone: whoever owns the connection lists
            them anew.
    """

    def __init__(self, client: Client, doubted: anyio.Event) -> None:
        self._client = client
        self.doubted = doubted

    async def tools(self) -> list[mcp.Tool]:
        """Return the tools that the server has.

        Raises:
            Unavailable: it does not say.
        """
        found: list[mcp.Tool] = []
        cursor: str | None = None
        try:
            for _ in range(MAX_PAGES):
                params = mcp.PaginatedRequestParams(cursor=cursor)
                page = await self._client.session.list_tools(params=params)
                found += page.tools
                cursor = page.next_cursor
                if cursor is None:
                    return found
        except MCPError as error:
            raise Unavailable(f"it does not list its tools: {error.message}") from error
        except ValidationError as error:
            raise Unavailable("it lists its tools in another way than the protocol's") from error
        raise Unavailable(f"its list of tools has more than {MAX_PAGES} pages")

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> mcp.CallToolResult:
        """Return what a tool answers; cancelling it cancels the tool's work.

        Raises:
            Unavailable: the server went away, or is not there.
            InvalidRequest: it takes other arguments.
            EngineError: it fails, or answers with something else.
        """
        params = mcp.CallToolRequestParams(name=tool, arguments=dict(arguments))
        request = mcp.CallToolRequest(params=params)
        try:
            # Not the session's `call_tool`: that follows the server's schema of its results, which binds nobody here.
            result = await self._client.session.send_request(request, _RESULT)
        except MCPError as error:
            self.doubted.set()
            if error.code == mcp.CONNECTION_CLOSED:
                raise Unavailable("the MCP server went away during the call") from error
            kind = InvalidRequest if error.code == mcp.INVALID_PARAMS else EngineError
            raise kind(f"the MCP server refuses: {error.message}") from error
        except ValidationError as error:
            self.doubted.set()
            raise EngineError("the MCP server's answer is none") from error
        if isinstance(result, mcp.InputRequiredResult):
            raise EngineError("the MCP server asks back, which is not possible here")
        return result


async def run_connection(settings: McpSettings, *, task_status: TaskStatus[Connection]) -> None:
    """Hold a connection open until cancelled; started when the server has introduced itself.

    What the server asks of us (to sample a model, to ask the user, for folders) is refused.

    Raises:
        Exception: there is no connection, or it broke.
    """
    doubted = anyio.Event()

    async def hear(message: IncomingMessage) -> None:
        if isinstance(message, mcp.ToolListChangedNotification):
            connection.doubted.set()

    async with AsyncExitStack() as stack:
        if settings.command is not None:
            transport: Any = Stdio(settings)
        else:
            transport = await stack.enter_async_context(http_transport(settings))
        client = Client(transport, cache=None, client_info=_CLIENT, message_handler=hear)
        connection = Connection(client, doubted)
        await stack.enter_async_context(client)
        task_status.started(connection)
        if _tells_changes(client):
            await _listen(client, connection)
        await anyio.sleep_forever()


def _tells_changes(client: Client) -> bool:
    """Tell whether changes of the tools must be listened for: from 2026-07-28 on, who does not listen is told nothing."""
    tools = client.server_capabilities.tools
    modern = client.protocol_version in MODERN_PROTOCOL_VERSIONS
    return modern and tools is not None and bool(tools.list_changed)


async def _listen(client: Client, connection: Connection) -> None:
    while True:
        try:
            async with client.listen(tools_list_changed=True) as changes:
                async for _ in changes:
                    connection.doubted.set()
        except (SubscriptionLost, MCPError):
            pass  # If it is more than that, listing the tools fails too.
        connection.doubted.set()
        await anyio.sleep(LISTEN_AGAIN_SECONDS)


def reason_of(error: BaseException) -> str:
    """Return why a server is gone, for the log: what is known of it, which may stand in groups of errors."""
    while isinstance(error, BaseExceptionGroup):
        known = [one for one in error.exceptions if isinstance(one, AylluError)]
        error = (known or error.exceptions)[0]
    match error:
        case AylluError():
            return error.message
        case MCPError():
            return f"it does not introduce itself: {error.message[:300]!a}"
        case httpx2.TransportError():
            return f"it cannot be reached: {type(error).__name__} {str(error)[:300]!a}"
    return f"it fails: {type(error).__name__}"
