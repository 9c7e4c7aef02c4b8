"""Tools of MCP servers over HTTP: the SDK's own server, killed and started again, and hostile ones."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from support import mcp_http
from support.mcp_servers import called, faulty, offered_when, running_tools, servers

from ayllu.actors.tools.mcp.settings import McpSettings
from ayllu.bus import Bus, local_bus
from ayllu.bus.client import offered_tools
from ayllu.schemas import DeadlineExceeded, NotFound, Unavailable

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("mcp-http")]

TOOLS = {f"web.{name}" for name in ("greet", "hang", "count", "grow")}
VARIABLE = "MCP_TEST_TOKEN"


class Server:
    """A server in a process of its own, always on the same port."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-P", str(Path(mcp_http.__file__)), str(self.port)]
        self._process = subprocess.Popen(command)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        pytest.fail("the server does not listen")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    running.start()
    yield running
    running.kill()


@asynccontextmanager
async def served(server: Server, path: str = "mcp", seconds: float = 20.0) -> AsyncIterator[Bus]:
    url = f"http://127.0.0.1:{server.port}/{path}"
    settings = McpSettings("web", url=url, key_variable=VARIABLE, seconds=seconds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, mcp_http.TOKEN)
        async with local_bus() as bus, running_tools(bus, servers(settings, faulty())):
            yield bus


async def test_tools_are_called_cancelled_and_changed(server: Server) -> None:
    async with served(server, seconds=1.0) as bus:
        assert set(await offered_tools(bus)) >= TOOLS
        assert await called(bus, "web.greet", name="Ana") == "Hello, Ana!"
        with anyio.move_on_after(0.2):
            await called(bus, "web.hang")
        with anyio.fail_after(5):
            while await called(bus, "web.count") != "1":
                await anyio.sleep(0.02)
        with anyio.fail_after(5), pytest.raises(DeadlineExceeded):
            await called(bus, "web.hang")
        assert await called(bus, "web.grow") == "done"
        await offered_when(bus, lambda names: "web.grown" in names)


async def test_a_server_that_is_killed_in_a_call_and_comes_back() -> None:
    server = Server()
    server.start()
    try:
        async with served(server) as bus:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fails, bus)
                await anyio.lowlevel.checkpoint()
                assert await called(bus, "web.greet", name="Ana") == "Hello, Ana!"
                await anyio.to_thread.run_sync(server.kill)
            assert await called(bus, "faults.echo", text="well") == "well"
            await offered_when(bus, lambda names: not TOOLS & names)
            await anyio.to_thread.run_sync(server.start)
            await offered_when(bus, lambda names: names >= TOOLS)
            assert await called(bus, "web.greet", name="Ana") == "Hello, Ana!"
    finally:
        server.kill()


async def fails(bus: Bus) -> None:
    with pytest.raises(Unavailable, match="went away"):
        await called(bus, "web.hang")


@pytest.mark.parametrize("path", ["nowhere", *(one.__name__ for one in mcp_http.HOSTILE)])
async def test_hostile_servers_offer_nothing_and_cost_little(
    server: Server, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "ayllu")
    with anyio.fail_after(15):
        async with served(server, path) as bus:
            assert await called(bus, "faults.echo", text="well") == "well"
            with pytest.raises(NotFound):
                await called(bus, "web.greet", name="Ana")
            while "MCP server web crashed" not in caplog.text:
                await anyio.sleep(0.02)
    assert mcp_http.TOKEN not in caplog.text


async def test_a_wrong_token_is_told_and_not_shown(
    server: Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_http, "TOKEN", "open-door")
    with anyio.fail_after(15):
        async with served(server) as bus:
            while "does not let us in (status 401)" not in caplog.text:
                await anyio.sleep(0.02)
            assert not TOOLS & set(await offered_tools(bus))
    assert "open-door" not in caplog.text
