"""Inference workers that share what waits, replaced and killed: real processes, on a nats-server of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from support.nats import killed_and_started
from support.processes import alive, running_worker, wait_for

from ayllu.bus import connect as connect_bus
from ayllu.bus.bus import Bus
from ayllu.bus.calls import Call
from ayllu.bus.client import INFERENCE_SERVICE, open_call
from ayllu.bus.server import Server, embedded_server
from ayllu.bus.transport import Message
from ayllu.client import Stack, connect
from ayllu.schemas import OPERATIONS, AylluError, CompletionRequest, encode

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

COMPLETION = OPERATIONS["completion.stream"]
CONFIG = """
[gateway]
shutdown_grace = 1.0

[[models]]
name = "slow"
engine = "scripted"
source = "slow:20"
slots = 3

[[models]]
name = "stall"
engine = "scripted"
source = "stall:5"
slots = 1

[[models]]
name = "single"
engine = "scripted"
source = "slow:50"
slots = 1
"""


@asynccontextmanager
async def place(folder: Path) -> AsyncIterator[tuple[Server, list[str]]]:
    """Run a nats-server; also gives the arguments of an inference worker."""
    config = folder / "ayllu.toml"
    config.write_text(CONFIG)
    async with embedded_server(folder / "nats") as server:
        yield server, ["inference", "--config", str(config), "--data-dir", str(folder / "data")]


async def ask(bus: Bus, model: str) -> Call:
    request = CompletionRequest(model=model, content="x", stream=True)
    return await open_call(bus, COMPLETION, encode(request), model=model, timeout=60)


async def told(bus: Bus, model: str) -> list[tuple[int, int]]:
    """Return of each actor of a model how many slots are in use, and how many requests wait."""
    stats = [one.data for one in await bus.transport.stats(INFERENCE_SERVICE)]
    return [(one["slots_in_use"], one["waiting"]) for one in stats if one["model"] == model]


async def until_told(bus: Bus, model: str, expected: list[tuple[int, int]]) -> None:
    with anyio.fail_after(15):
        while sorted(await told(bus, model)) != sorted(expected):
            pass  # Each question takes its time.


async def end_of(call: Call, seconds: float) -> AylluError | None:
    """Read a call to its end, and return its error."""
    with anyio.fail_after(seconds):
        try:
            while await call.take():
                pass
        except AylluError as error:
            return error
        return None


async def keep_asking(stack: Stack, stop: anyio.Event, ended: list[str]) -> None:
    request = CompletionRequest(model="slow", content="x")
    while not stop.is_set():
        try:
            chunks = [chunk async for chunk in stack.stream_completion(request)]
        except AylluError as error:
            ended.append(f"{error.code}: {error.message}")
        else:
            text = "".join(chunk.text_delta for chunk in chunks)
            ended.append("ok" if text.split()[-1] == "20" else text)


@pytest.mark.requirement("rolling-restart", "drain-finishes", "drain-hands-over")
async def test_workers_are_replaced_under_load_and_no_client_notices(tmp_path: Path) -> None:
    async with place(tmp_path) as (server, arguments):
        with ExitStack() as processes, socket.socket() as free:

            async def start(*command: str) -> subprocess.Popen[str]:
                worker = running_worker(list(command), server.url)
                return await anyio.to_thread.run_sync(processes.enter_context, worker)

            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            old = [await start(*arguments), await start(*arguments)]
            config = arguments[2]
            await start("gateway", "--port", str(port), "--config", config)
            stop, ended = anyio.Event(), list[str]()
            with anyio.fail_after(60):
                async with connect(f"http://127.0.0.1:{port}") as stack:
                    async with anyio.create_task_group() as clients:
                        for _ in range(20):  # Six run, the others wait.
                            clients.start_soon(keep_asking, stack, stop, ended)
                        for worker in old:
                            seen = len(ended)
                            while len(ended) < seen + 12:
                                await anyio.sleep(0.02)
                            worker.terminate()
                            await start(*arguments)
                            assert await anyio.to_thread.run_sync(worker.wait) == 0
                        async with connect_bus(server.url) as bus:
                            assert len(await told(bus, "slow")) == 2
                        stop.set()
            assert set(ended) == {"ok"}


@pytest.mark.requirement("drain-finishes")
async def test_a_second_signal_ends_what_a_drain_waits_for(tmp_path: Path) -> None:
    async with place(tmp_path) as (server, arguments), connect_bus(server.url) as bus:
        with running_worker(arguments, server.url) as worker:
            with (
                closing(await ask(bus, "stall")) as running,
                closing(await ask(bus, "stall")) as waits,
            ):
                await running.take()
                worker.send_signal(signal.SIGTERM)
                while await told(bus, "stall"):
                    pass
                # It takes nothing any more, and has not ended.
                assert worker.poll() is None
                worker.send_signal(signal.SIGTERM)
                for call in (running, waits):
                    error = await end_of(call, 5)
                    assert error is not None
                    assert (error.code, error.retryable) == ("unavailable", True)
                assert await anyio.to_thread.run_sync(worker.wait, 5) == 0


@pytest.mark.requirement("share-exactly-one")
async def test_an_actor_is_killed_when_it_was_just_given_a_request(tmp_path: Path) -> None:
    async with place(tmp_path) as (server, arguments), connect_bus(server.url) as bus:
        with running_worker(arguments, server.url) as first:
            with (
                closing(await ask(bus, "stall")) as running,
                closing(await ask(bus, "stall")) as given,
            ):
                await running.take()
                await until_told(bus, "stall", [(1, 1)])
                killed = anyio.Event()

                def kill(message: Message) -> None:
                    if message.subject.endswith(".take"):
                        os.kill(second.pid, signal.SIGKILL)
                        killed.set()

                with running_worker(arguments, server.url) as second:
                    async with bus.transport.subscribe("_INBOX.>", kill):
                        with anyio.fail_after(10):
                            await killed.wait()
                    wait_for("its end", lambda: not alive(second.pid))
                    # Its caller hears of it, or the first one has it again.
                    began = time.monotonic()
                    running.close()
                    error = None
                    try:
                        with anyio.fail_after(6):
                            await given.take()
                    except AylluError as lost:
                        error = lost
                    assert time.monotonic() - began < 5.5
                    assert error is None or (error.code, error.retryable) == ("actor_lost", True)
                assert first.poll() is None
                given.close()
                await until_told(bus, "stall", [(0, 0)])


@pytest.mark.requirement("share-exactly-one")
async def test_an_actor_is_killed_that_runs_what_it_was_given(tmp_path: Path) -> None:
    async with place(tmp_path) as (server, arguments), connect_bus(server.url) as bus:
        with running_worker(arguments, server.url):
            calls = [await ask(bus, "stall") for _ in range(3)]
            await calls[0].take()
            await until_told(bus, "stall", [(1, 2)])
            with running_worker(arguments, server.url) as second:
                await calls[1].take()
                await until_told(bus, "stall", [(1, 1), (1, 0)])
                second.kill()
                error = await end_of(calls[1], 5)
                assert error is not None
                assert (error.code, error.retryable) == ("actor_lost", True)
            calls[0].close()
            with anyio.fail_after(5):
                assert await calls[2].take()  # It waited, and is none the worse for it.
            for call in calls:
                call.close()
            await until_told(bus, "stall", [(0, 0)])


@pytest.mark.requirement("share-waiting", "kill-nats-server")
async def test_the_nats_server_is_killed_while_requests_wait(tmp_path: Path) -> None:
    async with place(tmp_path) as (server, arguments), connect_bus(server.url) as bus:
        with running_worker(arguments, server.url), running_worker(arguments, server.url):
            calls = [await ask(bus, "single") for _ in range(8)]
            await calls[0].take()
            async with killed_and_started(tmp_path / "nats", server):
                errors = [await end_of(call, 30) for call in calls]
                assert all(error is None or error.retryable for error in errors)
                # Nothing of them is left, and all goes on.
                await until_told(bus, "single", [(0, 0), (0, 0)])
                assert await end_of(await ask(bus, "single"), 10) is None
