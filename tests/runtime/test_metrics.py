"""The gateway's numbers, read as Prometheus reads them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support.gateway import running_gateway
from support.nats import killed_and_started
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import InvalidStatus

from ayllu.actors.engines.scripted import ScriptedEngine, script_of
from ayllu.actors.inference import InferenceActor
from ayllu.bus import connect as connect_bus
from ayllu.bus.server import embedded_server
from ayllu.bus.service import serve
from ayllu.bus.transport import Endpoint, ServiceInfo
from ayllu.runtime.config import GatewayConfig
from ayllu.runtime.gateway import serve_gateway
from ayllu.runtime.metrics import MOST_OWN, Metrics
from ayllu.runtime.supervisor import open_listener, url_of
from ayllu.schemas import OPERATIONS, CompletionRequest, NotFound

pytestmark = pytest.mark.asyncio


class Page:
    """A page of numbers."""

    def __init__(self, text: str) -> None:
        self.samples = [
            sample
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith("ayllu_")
        ]

    def value(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have the labels."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def labels(self, name: str) -> set[str]:
        return {value for one in self.samples for key, value in one.labels.items() if key == name}


async def scrape(http: httpx2.AsyncClient) -> Page:
    reply = await http.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return Page(reply.text)


async def settled(http: httpx2.AsyncClient, name: str, value: float, **labels: str) -> Page:
    """Return the page on which a number has a value; the end of a call and its answer cross."""
    with anyio.fail_after(5):
        while (page := await scrape(http)).value(name, **labels) != value:
            await anyio.sleep(0.02)
    return page


@pytest.mark.requirement("metrics-calls")
async def test_calls_are_counted_by_operation_and_outcome() -> None:
    async with running_gateway() as gateway:
        await gateway.shapes.shout("x")
        await gateway.http.post("/shapes/shout", params={"text": "x"})
        with pytest.raises(NotFound):
            await gateway.shapes.fail("known")
        await gateway.http.post("/shapes/count", json={"to": 3, "stream": True})
        await gateway.http.post("/shapes/count", json={"to": "x"})
        with anyio.move_on_after(0.2):
            await gateway.http.post("/shapes/hang")
        page = await settled(gateway.http, "ayllu_calls_total", 1, outcome="cancelled")
        for operation, outcome, count in [
            ("shapes.shout", "ok", 2),
            ("shapes.fail", "not_found", 1),
            ("shapes.count.stream", "ok", 1),
            ("shapes.count", "invalid_request", 1),
            ("shapes.hang", "cancelled", 1),
        ]:
            assert page.value("ayllu_calls_total", operation=operation, outcome=outcome) == count
        assert page.value("ayllu_events_total", operation="shapes.count.stream") == 3
        assert page.value("ayllu_call_seconds_count", operation="shapes.shout") == 2
        assert page.value("ayllu_first_event_seconds_count", operation="shapes.hang") == 0
        assert page.value("ayllu_calls_in_flight") == 0


@pytest.mark.requirement("metrics-labels")
async def test_what_clients_send_is_never_a_label() -> None:
    async with running_gateway() as gateway:
        async with open_websocket(gateway.websocket_url) as websocket:
            for number in range(50):
                frame = {"jsonrpc": "2.0", "id": number, "method": f"evil{number}"}
                await websocket.send(json.dumps(frame))
                await websocket.recv()
            await websocket.send("{")
            await websocket.recv()
        for number in range(20):
            await gateway.http.get(f"/evil/{number}")
            body = {"model": f"evil{number}", "content": "x"}
            await gateway.http.post("/completion", json=body)
        page = await scrape(gateway.http)
        assert page.value("ayllu_calls_total", operation="unknown") == 71
        assert not any(
            "evil" in value for name in ("operation", "model") for value in page.labels(name)
        )


@pytest.mark.requirement("metrics-labels", "own-actor-hostile")
async def test_operations_of_own_actors_have_a_bounded_number_of_labels() -> None:
    metrics = Metrics(OPERATIONS)
    for number in range(2 * MOST_OWN):
        metrics.refused(f"own.n{number}", "not_found")
    for name in ("models", "unknown", "", "own.n0"):
        metrics.refused(name, "not_found")
    page = Page(generate_latest(metrics.registry).decode())
    assert len(page.labels("operation")) == MOST_OWN + 3
    assert page.value("ayllu_calls_total", operation="own") == MOST_OWN
    assert page.value("ayllu_calls_total", operation="own.n0") == 2
    assert page.value("ayllu_calls_total", operation="unknown") == 2


@pytest.mark.requirement("metrics-calls")
async def test_what_is_turned_away_at_the_door_is_counted() -> None:
    config = GatewayConfig(max_connections=2, request_timeout=0.3)
    async with running_gateway(config=config) as gateway:  # Two connections are ours.
        for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
            await gateway.http.get("/livez", headers=headers)
            await gateway.http.get("/livez")
        await settled(gateway.http, "ayllu_calls_total", 2, outcome="permission_denied")
        await settled(gateway.http, "ayllu_calls_total", 0, outcome="unavailable")
        with pytest.raises(InvalidStatus):
            async with open_websocket(gateway.websocket_url):
                pass
        await settled(gateway.http, "ayllu_calls_total", 1, outcome="unavailable")
        port = httpx2.URL(gateway.url).port
        assert port is not None
        async with await anyio.connect_tcp("127.0.0.1", port) as slow:
            await slow.send(b"GET /livez HTT")
            assert b"408" in await slow.receive()
        await settled(gateway.http, "ayllu_calls_total", 1, outcome="deadline_exceeded")


@pytest.mark.requirement("metrics-calls")
async def test_connections_and_calls_in_flight() -> None:
    async with running_gateway() as gateway:
        stream = gateway.shapes.stall(1)
        assert await anext(aiter(stream)) == 0
        async with open_websocket(gateway.websocket_url) as websocket:
            await websocket.ping()
            page = await settled(gateway.http, "ayllu_websockets", 2)
            assert page.value("ayllu_calls_in_flight") == 1
            assert page.value("ayllu_connections") == 3
        await stream.aclose()  # type: ignore[attr-defined]
        page = await settled(gateway.http, "ayllu_calls_in_flight", 0)
        assert page.value("ayllu_calls_total", outcome="cancelled") == 1


@pytest.mark.requirement("metrics-drops")
async def test_a_dropped_client_is_counted() -> None:
    async with running_gateway(config=GatewayConfig(write_timeout=0.3)) as gateway:
        async with open_websocket(
            gateway.websocket_url, max_queue=1, close_timeout=0.1
        ) as websocket:
            params = {"to": 1_000_000, "size": 10_000}
            frame = {"jsonrpc": "2.0", "id": 1, "method": "shapes.count.stream", "params": params}
            await websocket.send(json.dumps(frame))
            await settled(gateway.http, "ayllu_dropped_clients_total", 1)


@pytest.mark.requirement("metrics-engines")
async def test_slots_and_tokens_of_the_engines() -> None:
    gate = anyio.Event()
    engine = ScriptedEngine(script_of({"": ["one", gate, " two"]}), slots=2)
    async with engine:
        actor = InferenceActor(engine, name="m")
        async with running_gateway(actor) as gateway, anyio.create_task_group() as tasks:
            for _ in range(3):
                request = CompletionRequest(model="m", content="a b c")
                tasks.start_soon(gateway.stack.completion, request)
            page = await settled(gateway.http, "ayllu_engine_waiting", 1, model="m")
            assert page.value("ayllu_engine_slots", model="m") == 2
            assert page.value("ayllu_engine_slots_in_use", model="m") == 2
            gate.set()
            page = await settled(gateway.http, "ayllu_engine_slots_in_use", 0, model="m")
            assert page.value("ayllu_tokens_total", kind="completion", model="m") == 6
            assert page.value("ayllu_tokens_total", kind="prompt", model="m") == 9


@pytest.mark.requirement("actor-numbers")
async def test_the_page_shows_every_service() -> None:
    async with running_gateway() as gateway, anyio.create_task_group() as tasks:
        foreign = ServiceInfo("foreign", "1.0.0", endpoints=(Endpoint("e", "foreign.e", "q"),))
        async with gateway.bus.transport.announce(foreign, lambda _: None):
            await gateway.shapes.shout("x")
            with pytest.raises(NotFound):
                await gateway.shapes.fail("known")
            tasks.start_soon(gateway.shapes.hang)
            await gateway.actor.started.wait()
            page = await scrape(gateway.http)
            assert page.value("ayllu_actor_calls_total", service="shapes", outcome="ok") == 1
            assert page.value("ayllu_actor_calls_total", service="shapes", outcome="error") == 1
            assert page.value("ayllu_actor_running", service="shapes") == 1
            assert page.value("ayllu_actor_waiting", service="shapes") == 0
            assert page.labels("service") == {"shapes"}
            tasks.cancel_scope.cancel()


@asynccontextmanager
async def on_nats(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    """Run a gateway and an inference actor on a real bus."""
    listener = open_listener("127.0.0.1", 0)
    async with (
        connect_bus(url) as bus,
        ScriptedEngine(script_of({"": ["one"]}), slots=3) as engine,
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(serve, bus, InferenceActor(engine, name="m"))
        # One that tells nonsense is left out.
        foreign = ServiceInfo(
            "inference",
            "1.0.0",
            endpoints=(Endpoint("e", "foreign.e", "q"),),
            stats=lambda: {"slots": "many"},
        )
        async with bus.transport.announce(foreign, lambda _: None):
            await tasks.start(serve_gateway, bus, GatewayConfig(), listener)
            async with httpx2.AsyncClient(base_url=url_of(listener), timeout=20) as http:
                yield http
            tasks.cancel_scope.cancel()


@pytest.mark.requirement("metrics-engines")
async def test_the_same_over_nats(nats_url: str) -> None:
    with anyio.fail_after(20):
        async with on_nats(nats_url) as http:
            page = await scrape(http)
            assert page.value("ayllu_engine_slots", model="m") == 3
            assert page.value("ayllu_bus_connected") == 1
            assert page.value("ayllu_bus_reconnects_total") == 0


@pytest.mark.requirement("metrics-bus")
async def test_a_lost_bus_and_its_return(tmp_path: Path) -> None:
    with anyio.fail_after(40):
        async with embedded_server(tmp_path / "nats") as server, on_nats(server.url) as http:
            async with killed_and_started(tmp_path / "nats", server):
                page = await settled(http, "ayllu_bus_reconnects_total", 1)
                assert page.value("ayllu_bus_connected") == 1
