"""Health, as load balancers ask for it."""

from __future__ import annotations

from pathlib import Path

import anyio
import httpx2
import pytest
from support.gateway import running_gateway
from support.nats import kill

from ayllu.actors.engines.scripted import ScriptedEngine, script_of
from ayllu.actors.inference import InferenceActor
from ayllu.actors.models import ModelsActor
from ayllu.bus import connect as connect_bus
from ayllu.bus.bus import local_bus
from ayllu.bus.server import embedded_server
from ayllu.bus.service import serve
from ayllu.runtime.config import GatewayConfig
from ayllu.runtime.gateway import serve_gateway
from ayllu.runtime.health import Fresh, Readiness, check_readiness
from ayllu.runtime.supervisor import open_listener, url_of
from ayllu.schemas import decode

pytestmark = pytest.mark.asyncio


@pytest.mark.requirement("health-live")
async def test_a_process_that_answers_is_alive() -> None:
    async with running_gateway() as gateway:
        reply = await gateway.http.get("/livez")
        assert (reply.status_code, reply.json()) == (200, {"live": True})


@pytest.mark.requirement("health-ready")
async def test_without_actors_it_is_not_ready_and_says_why() -> None:
    async with running_gateway() as gateway:
        reply = await gateway.http.get("/readyz")
        assert reply.status_code == 503
        found = decode(reply.content, Readiness)
        assert not found.ready
        assert {name: check.ok for name, check in found.checks.items()} == {
            "bus": True,
            "actors": False,
            "models": False,
        }
        assert all(check.ok or check.why for check in found.checks.values())


@pytest.mark.requirement("health-ready")
async def test_it_becomes_ready_with_a_model_and_names_none() -> None:
    async with local_bus() as bus, anyio.create_task_group() as tasks:
        await tasks.start(serve, bus, ModelsActor(bus))
        assert not (await check_readiness(bus)).ready
        async with ScriptedEngine(script_of({})) as engine:
            await tasks.start(serve, bus, InferenceActor(engine, name="private-name"))
            found = await check_readiness(bus)
            assert found.ready
            assert "private-name" not in repr(found)
            tasks.cancel_scope.cancel()


@pytest.mark.requirement("health-ready")
async def test_a_lost_bus_is_said_at_once(tmp_path: Path) -> None:
    listener = open_listener("127.0.0.1", 0)
    with anyio.fail_after(30):
        async with (
            embedded_server(tmp_path / "nats") as server,
            connect_bus(server.url) as bus,
            anyio.create_task_group() as tasks,
        ):
            await tasks.start(serve_gateway, bus, GatewayConfig(), listener)
            async with httpx2.AsyncClient(base_url=url_of(listener), timeout=20) as http:
                await kill(server)
                with anyio.fail_after(10):
                    while (reply := await http.get("/readyz")).json()["checks"]["bus"]["ok"]:
                        await anyio.sleep(0.05)
                assert reply.status_code == 503
                assert (await http.get("/livez")).status_code == 200
            tasks.cancel_scope.cancel()


@pytest.mark.requirement("health-cheap")
async def test_many_who_ask_at_once_cost_one_question() -> None:
    asked = 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        await anyio.lowlevel.checkpoint()
        return asked

    fresh = Fresh(ask, seconds=60)
    answers: list[int] = []

    async def take() -> None:
        answers.append(await fresh.get())

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(take)
    assert answers == [1] * 20
    stale = Fresh(ask, seconds=-1)
    assert [await stale.get(), await stale.get()] == [2, 3]
