"""MCP over the standard input and output of a process: lines of JSON, bounded in length and number."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client import Transport
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCNotification, JSONRPCRequest, jsonrpc_message_adapter

from ....schemas import Unavailable
from .process import ended, log_stderr, server_process
from .settings import McpSettings

log = logging.getLogger(__name__)

MAX_LINE = 16 << 20
"""Bytes of a message."""
UNASKED_MESSAGES, UNASKED_SECONDS = 1000, 10.0
"""How many messages a server may send in so many seconds beyond the answers that it owes."""
WAITING_MESSAGES = 256
"""How many messages wait for a server that does not read."""
WRITE_SECONDS = 10.0
"""How long a server may leave a message unread."""
HEARD = (
    "notifications/tools/list_changed",
    "notifications/subscriptions/acknowledged",
    "notifications/cancelled",
)
"""The notifications that mean something to us; others are dropped before they cost more."""

Item = SessionMessage | Exception
Streams = tuple[MemoryObjectReceiveStream[Item], MemoryObjectSendStream[SessionMessage]]


class Stdio(Transport):
    """The transport of a server that is a process; the process lives as long as it is entered.

    Args:
        settings: the server.
    """

    def __init__(self, settings: McpSettings) -> None:
        self._opened = _opened(settings)

    async def __aenter__(self) -> Streams:
        """Start the process.

        Raises:
            InvalidRequest: there is no such program.
        """
        return await self._opened.__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        """End the process."""
        return await self._opened.__aexit__(exc_type, exc, traceback)


@asynccontextmanager
async def _opened(settings: McpSettings) -> AsyncIterator[Streams]:
    to_us, inbox = anyio.create_memory_object_stream[Item](0)
    outbox, to_server = anyio.create_memory_object_stream[SessionMessage](WAITING_MESSAGES)
    async with (
        to_us,
        inbox,
        outbox,
        to_server,
        server_process(settings) as process,
        anyio.create_task_group() as tasks,
    ):
        assert process.stderr is not None
        tasks.start_soon(log_stderr, process.stderr, settings.name)
        budget = _Budget()
        tasks.start_soon(_read, process, to_us, settings.name, budget)
        tasks.start_soon(_write, process, to_server, budget)
        tasks.start_soon(_watch, process)
        yield inbox, outbox
        tasks.cancel_scope.cancel()


async def _read(
    process: Process, to_us: MemoryObjectSendStream[Item], name: str, budget: _Budget
) -> None:
    """Hand on what a server says.

    Raises:
        Unavailable: it has ended, or says too much.
    """
    async with to_us:
        async for line in _lines(process):
            message = _message(line, name)
            budget.spend()
            if message is None:
                continue
            if isinstance(message, JSONRPCNotification) and message.method not in HEARD:
                continue
            try:
                await to_us.send(SessionMessage(message))
            except anyio.BrokenResourceError:
                return  # The session has ended.
    raise Unavailable("it ended")


async def _watch(process: Process) -> None:
    await ended(process)
    raise Unavailable("it ended")


async def _lines(process: Process) -> AsyncIterator[bytes]:
    """Yield the lines that a process writes, until it ends.

    Raises:
        Unavailable: a line is too long.
    """
    assert process.stdout is not None
    begun: list[bytes] = []
    size = 0
    while True:
        try:
            part = await process.stdout.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return
        first, *others = part.split(b"\n")
        begun.append(first)
        size += len(first)
        if size > MAX_LINE:
            raise Unavailable(f"it sent a message of more than {MAX_LINE} bytes")
        if others:
            yield b"".join(begun)
            *whole, rest = others
            for line in whole:
                yield line
            begun, size = [rest], len(rest)


def _message(line: bytes, name: str) -> Any:
    """Return a line as a message; None where it is none: some servers print what belongs to standard error."""
    if not line.strip():
        return None
    try:
        return jsonrpc_message_adapter.validate_json(line, by_name=False)
    except (ValueError, RecursionError):
        log.info("MCP server %s says what is no message: %s", name, ascii(line[:200])[2:-1])
        return None


class _Budget:
    """What a server may say without being asked."""

    def __init__(self) -> None:
        self._since = anyio.current_time()
        self._spent = 0

    def earn(self) -> None:
        """Note that it was asked: it owes an answer."""
        self._spent -= 1

    def spend(self) -> None:
        """Count a message.

        Raises:
            Unavailable: there were too many.
        """
        now = anyio.current_time()
        if now - self._since > UNASKED_SECONDS:
            self._since, self._spent = now, 0
        self._spent += 1
        if self._spent > UNASKED_MESSAGES:
            raise Unavailable(f"it sent more than {UNASKED_MESSAGES} messages unasked")


async def _write(
    process: Process, to_server: MemoryObjectReceiveStream[SessionMessage], budget: _Budget
) -> None:
    """Hand on what is said to a server.

    Raises:
        Unavailable: it does not read.
    """
    assert process.stdin is not None
    async for message in to_server:
        if isinstance(message.message, JSONRPCRequest):
            budget.earn()
        text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
        try:
            with anyio.fail_after(WRITE_SECONDS):
                await process.stdin.send(text.encode() + b"\n")
        except TimeoutError as error:
            raise Unavailable(f"it did not read for {WRITE_SECONDS:g} s") from error
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            return  # It has ended; the reader tells.
