"""An MCP server's tools on the bus: offered while it answers, anew when they change, and not at all when it is gone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus

from ....bus.bus import Bus
from ....bus.service import Service
from ....schemas import (
    Content,
    DeadlineExceeded,
    ToolRequest,
    Unavailable,
)
from ..actor import ToolsActor
from .connection import Connection, reason_of, run_connection
from .listing import Listed, usable_tools
from .results import content_of
from .settings import McpSettings

log = logging.getLogger(__name__)

READY_SECONDS = 10.0
"""How long others wait for a server's first start; then its tools come when they come."""
LIST_SECONDS = 10.0
"""How long a server may take to list its tools; one that takes longer hangs."""
PAUSE_SECONDS = 1.0
"""How long after a list the next one is asked for at the earliest."""
SPARE_SECONDS = 5.0
"""What a tool gets beyond the server's own time, so that the message about that arrives."""


class McpTool:
    """A `Tool` of an MCP server.

    Args:
        listed: what the server says of it.
        connection: where it is called.
        settings: the server.
    """

    def __init__(self, listed: Listed, connection: Connection, settings: McpSettings) -> None:
        self.name = f"{settings.name}.{listed.name}"
        self.description = listed.description
        self.parameters: Mapping[str, Any] = listed.parameters
        self.idempotent = listed.name in settings.idempotent
        self.seconds = settings.seconds + SPARE_SECONDS
        self.max_output = settings.max_output
        self._own_name = listed.name
        self._connection = connection
        self._settings = settings

    async def run(self, request: ToolRequest) -> Content:
        """Call it; see `Tool.run`.

        Raises:
            DeadlineExceeded: the server did not answer in time.
            AylluError: see `Connection.call`, `content_of`.
        """
        seconds = self._settings.seconds
        try:
            with anyio.fail_after(seconds):
                result = await self._connection.call(self._own_name, request.arguments)
        except TimeoutError as error:
            self._connection.doubted.set()
            told = f"the MCP server {self._settings.name} did not answer within {seconds:g} s"
            raise DeadlineExceeded(told, retryable=False) from error
        return content_of(result)


class McpServer:
    """Runs an MCP server, and offers its tools.

    Args:
        bus: where they are offered.
        settings: the server.
    """

    def __init__(self, bus: Bus, settings: McpSettings) -> None:
        self._bus = bus
        self._settings = settings

    async def run(self, *, task_status: TaskStatus[Any]) -> None:
        """Run it until cancelled; started when its tools are offered, or when it is clear that this takes longer.

        Raises:
            Unavailable: it cannot be reached, or is gone; whoever supervises it starts it anew.
        """
        ready = _Ready(task_status)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ready.wait)
                await self._offer(tasks, ready)
        except Exception as error:
            ready.set()  # A server that is not there is no reason for the others not to start.
            raise Unavailable(reason_of(error)) from error

    async def _offer(self, tasks: TaskGroup, ready: _Ready) -> None:
        seconds = self._settings.start_seconds
        try:
            with anyio.fail_after(seconds):
                connection: Connection = await tasks.start(run_connection, self._settings)
        except TimeoutError as error:
            raise Unavailable(f"it was not ready within {seconds:g} s") from error
        offered: list[Listed] | None = None
        service: Service | None = None
        while True:
            listed = await self._listed(connection)
            if listed != offered:
                service = await self._replaced(tasks, service, connection, listed)
                offered = listed
            ready.set()
            await anyio.sleep(PAUSE_SECONDS)
            await connection.doubted.wait()

    async def _listed(self, connection: Connection) -> list[Listed]:
        connection.doubted = anyio.Event()
        try:
            with anyio.fail_after(LIST_SECONDS):
                return usable_tools(await connection.tools(), self._settings)
        except TimeoutError as error:
            raise Unavailable(f"it did not list its tools within {LIST_SECONDS:g} s") from error

    async def _replaced(
        self,
        tasks: TaskGroup,
        former: Service | None,
        connection: Connection,
        listed: list[Listed],
    ) -> Service | None:
        """Offer tools in the place of others, whose calls go on."""
        service: Service | None = None
        if listed:
            tools = [McpTool(one, connection, self._settings) for one in listed]
            service = Service(self._bus, ToolsActor(tools))
            await tasks.start(service.run)
        if former is not None:
            former.retire(self._settings.seconds)
        log.info("MCP server %s offers %d tools", self._settings.name, len(listed))
        return service


class _Ready:
    """Says that something is ready, once."""

    def __init__(self, task_status: TaskStatus[Any]) -> None:
        self._task_status = task_status
        self._set = False

    def set(self) -> None:
        """Say so, if it was not said."""
        if not self._set:
            self._set = True
            self._task_status.started()

    async def wait(self) -> None:
        """Say so after a while."""
        await anyio.sleep(READY_SECONDS)
        self.set()
