"""The topology of compose.yaml as plain processes: an external nats-server, a gateway, two inference workers."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.processes import SCRIPTED, alive, descendants, running_worker

from ayllu.bus import connect as connect_bus
from ayllu.client import Stack, connect
from ayllu.schemas import AylluError, CompletionRequest

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

GRACE = "[gateway]\nshutdown_grace = 1.0\n[serving]\ndrain_seconds = 5.0\n"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass(frozen=True)
class Topology:
    """What runs."""

    url: str
    gateway: subprocess.Popen[str]
    workers: tuple[subprocess.Popen[str], subprocess.Popen[str]]


@contextmanager
def running_topology(folder: Path, bus_url: str) -> Iterator[Topology]:
    config = folder / "ayllu.toml"
    config.write_text(GRACE + SCRIPTED)
    inference = ["inference", "--config", str(config)]
    port = free_port()
    with (
        running_worker(inference, bus_url) as one,
        running_worker(inference, bus_url) as two,
        running_worker(["gateway", "--config", str(config), "--port", str(port)], bus_url) as gate,
    ):
        yield Topology(f"http://127.0.0.1:{port}", gate, (one, two))


@contextmanager
def second_gateway(bus_url: str) -> Iterator[str]:
    """Run another gateway on the same bus, to look at what another left behind."""
    port = free_port()
    with running_worker(["gateway", "--port", str(port)], bus_url):
        yield f"http://127.0.0.1:{port}"


async def by_actor(url: str, name: str, **labels: str) -> dict[str, float]:
    """Return a number of the gateway's metrics for each actor."""
    async with httpx2.AsyncClient(base_url=url) as http:
        text = (await http.get("/metrics")).text
    return {
        sample.labels["actor"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    }


async def count(stack: Stack) -> int:
    """Return how many events a stream of 128 tokens had."""
    request = CompletionRequest(model="count", content="x")
    return len([chunk async for chunk in stack.stream_completion(request)])


async def end_of(stream: AsyncIterator[object]) -> AylluError:
    """Return the error that a stream ends in."""
    with pytest.raises(AylluError) as ended:
        async for _ in stream:
            pass
    return ended.value


@asynccontextmanager
async def load_on(stack: Stack) -> AsyncIterator[list[str]]:
    """Keep eight streams running; whatever they end in goes well or may be retried."""
    outcomes: list[str] = []
    stop = anyio.Event()

    async def ask() -> None:
        while not stop.is_set():
            try:
                assert await count(stack) == 129
                outcomes.append("ok")
            except AylluError as error:
                assert error.retryable, error.info
                outcomes.append(error.info.code)
                await anyio.sleep(0.01)  # as a client that retries does

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(ask)
        while len(outcomes) < 16:
            await anyio.sleep(0.01)
        yield outcomes
        stop.set()


@pytest.mark.requirement("topology-shares-load")
async def test_two_workers_share_the_load(tmp_path: Path, nats_url: str) -> None:
    with running_topology(tmp_path, nats_url) as topology, anyio.fail_after(60):
        async with connect(topology.url) as stack, anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(count, stack)
        async with httpx2.AsyncClient(base_url=topology.url) as http:
            ready = (await http.get("/readyz")).json()
        assert ready["ready"]
        await anyio.sleep(1.1)  # numbers of the workers may be a second old
        labels = {"model": "count", "kind": "completion"}
        shares = await by_actor(topology.url, "ayllu_tokens_total", **labels)
        assert sum(shares.values()) == 40 * 128
        assert len(shares) == 2
        assert min(shares.values()) > 0


@pytest.mark.requirement("topology-survives")
async def test_one_worker_is_killed_and_the_other_goes_on(tmp_path: Path, nats_url: str) -> None:
    with running_topology(tmp_path, nats_url) as topology, anyio.fail_after(60):
        async with connect(topology.url) as stack:
            async with load_on(stack) as outcomes:
                topology.workers[0].send_signal(signal.SIGKILL)
                topology.workers[0].wait(5)
                seen = len(outcomes)
                while outcomes[seen:].count("ok") < 16:
                    await anyio.sleep(0.01)
            for _ in range(8):  # With the dead one gone, nothing fails.
                assert await count(stack) == 129
        assert len(await by_actor(topology.url, "ayllu_engine_slots", model="count")) == 1


@pytest.mark.requirement("sigterm-under-load")
async def test_workers_end_under_load(tmp_path: Path, nats_url: str) -> None:
    with running_topology(tmp_path, nats_url) as topology, anyio.fail_after(60):
        async with connect(topology.url) as stack, load_on(stack) as outcomes:
            request = CompletionRequest(model="stall", content="x")
            streams = [aiter(stack.stream_completion(request)) for _ in range(4)]
            for stream in streams:
                await anext(stream)
            for worker in topology.workers:
                worker.terminate()
            with anyio.fail_after(10):  # The grace time is 5 s.
                errors = [await end_of(stream) for stream in streams]
                for worker in topology.workers:
                    assert await anyio.to_thread.run_sync(worker.wait) == 0
            assert all(error.retryable for error in errors), [error.info for error in errors]
            assert outcomes.count("ok") >= 16
        async with connect_bus(nats_url) as bus:
            assert await bus.transport.discover("inference") == []


@pytest.mark.requirement("sigterm-under-load")
async def test_the_gateway_ends_under_load(tmp_path: Path, nats_url: str) -> None:
    with running_topology(tmp_path, nats_url) as topology, anyio.fail_after(60):
        assert not descendants(topology.gateway.pid)
        async with connect(topology.url) as stack:
            request = CompletionRequest(model="stall", content="x")
            streams = [aiter(stack.stream_completion(request)) for _ in range(4)]
            for stream in streams:
                await anext(stream)
            topology.gateway.terminate()
            with anyio.fail_after(10):
                errors = [await end_of(stream) for stream in streams]
                assert await anyio.to_thread.run_sync(topology.gateway.wait) == 0
            assert all(error.retryable for error in errors), [error.info for error in errors]
        assert all(map(alive, (worker.pid for worker in topology.workers)))
        with second_gateway(nats_url) as url:  # Its calls were cancelled, down into the engines.
            used = await by_actor(url, "ayllu_engine_slots_in_use", model="stall")
            assert list(used.values()) == [0, 0]
