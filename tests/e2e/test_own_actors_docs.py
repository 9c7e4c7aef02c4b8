"""docs/own-actors.md: its examples are run against a deployment with own actors, whose process is killed, too."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import httpx2
import pytest
from support.pages import GATEWAY, blocks, page, run_block
from support.processes import (
    AYLLU,
    SCRIPTED,
    Up,
    alive,
    descendants,
    run_ayllu,
    running_up,
)

from ayllu.actors import testing
from ayllu.bus import client, connect
from ayllu.bus.context import CallContext
from ayllu.bus.service import MAX_RUNNING, Service
from ayllu.client import connect as connect_to_gateway
from ayllu.runtime.own_operations import KEEP_SECONDS, MOST_OPERATIONS
from ayllu.schemas import (
    OWN_OPERATIONS,
    AgenticSystemCreateRequest,
    AgenticSystemExecuteRequest,
    AylluError,
    Message,
    Role,
    ToolDefinition,
)
from ayllu.schemas.webmethod import DEFAULT_TIMEOUT, Verb

PAGE = page("own-actors.md")
BLOCKS = blocks(PAGE)
ACTOR, GATEWAY_CLIENT, BUS_CLIENT, AGENT, TEST = [text for kind, text in BLOCKS if kind == "python"]
EXAMPLES = Path(__file__).parents[2] / "examples"
SMOLLM2 = """
[[models]]
name = "smollm2"
engine = "scripted"
source = "echo"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "parcels.py").write_text(ACTOR)
    return folder


@pytest.fixture(scope="module")
def up(folder: Path) -> Iterator[Up]:
    imports = ["--import", "parcels", "--import", "greeter:GreeterActor"]
    with pytest.MonkeyPatch.context() as patch:
        # One is found in the current directory, as the page says.
        patch.setenv("PYTHONPATH", str(EXAMPLES))
        patch.chdir(folder)
        with running_up(folder / "data", f"{SCRIPTED}{SMOLLM2}", imports) as running:
            yield running
            assert running.stop() == 0


@pytest.mark.slow
@pytest.mark.requirement("own-actor-docs", "own-actor-called", "own-actor-import")
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_examples_in_their_order(up: Up, folder: Path) -> None:
    environment = {"AYLLU_BUS_URL": up.bus_url, "PYTHONPATH": str(folder)}
    said: list[str] = []
    for kind, text in BLOCKS:
        if not kind and text.startswith("{"):
            assert said[-1].splitlines() == 2 * [text.strip()]
        elif kind == "sh" or text in (GATEWAY_CLIENT, BUS_CLIENT, AGENT):
            source = text.replace(GATEWAY, up.url)
            source = source.replace("ayllu call ", f"ayllu call --url {up.url} ")
            said.append(run_block(kind, source, folder, environment))
    _, over_websocket, over_http, over_bus, _ = said
    assert over_websocket == "Puno\nCusco\nPuno\n"
    assert over_http.endswith('}data: "Cusco"\n\ndata: "Puno"\n\n')
    assert over_bus == "Parcel(number='AB-123', place='Puno')\n"


@pytest.mark.requirement("own-actor-docs", "own-actor-testing")
def test_the_test(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "test_parcels.py").write_text(TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--asyncio-mode=auto"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.requirement("own-actor-docs")
def test_what_it_says() -> None:
    """The names and numbers of the page are those of the code."""
    assert f"| {DEFAULT_TIMEOUT:g} |" in PAGE
    assert all(f"`{verb}`" in PAGE for verb in get_args(Verb))
    assert f"| {MAX_RUNNING:,} calls at once |" in PAGE
    assert f"at most {MOST_OPERATIONS} operations" in PAGE
    assert KEEP_SECONDS == 600
    assert f"the metadata `{OWN_OPERATIONS}`" in PAGE
    for field in ("deadline", "traceparent", "operation", "idempotency_key"):
        assert field in CallContext.__dataclass_fields__
        assert field in PAGE
    assert Service.stats.__doc__ is not None
    assert all(hasattr(testing, name) for name in ("running", "running_agents"))


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-called")
async def test_the_example_from_everywhere(up: Up) -> None:
    done = run_ayllu("call", "greeter.spell", '{"name": "ab"}', "--url", up.url)
    assert done.stdout == '"A"\n"B"\n'
    assert run_ayllu("call", "greeter.nod", "--url", up.url).returncode == 1
    tool = run_ayllu("tools", "call", "greeter.greet", "name=Quispe", "--url", up.url)
    assert tool.stdout == "Allinllachu, Quispe!\n"
    for address in (up.url, up.bus_url):
        example = subprocess.run(
            [sys.executable, str(EXAMPLES / "call_greeter.py"), address],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Allinllachu, Quispe!\nQ U I S P E" in example.stdout, example.stderr


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-called")
async def test_an_agent_calls_it(up: Up) -> None:
    call = '<tool_call>[{"name": "greeter.greet", "arguments": {"name": "Quispe"}}]</tool_call>'
    async with connect_to_gateway(up.url) as stack:
        await stack.agentic_system.create(
            AgenticSystemCreateRequest(
                uuid="host",
                instructions="Repeat.",
                model="echo",
                available_tools=[ToolDefinition("greeter.greet")],
                executable_tools={"greeter.greet"},
                max_steps=2,
            )
        )
        reply = await stack.agentic_system.execute(
            AgenticSystemExecuteRequest("host", [Message(role=Role.user, content=call)])
        )
    steps = json.dumps([str(step) for step in reply.turn.steps])
    assert "Allinllachu, Quispe!" in steps


@pytest.fixture
def greeter_protocol(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return import_module("greeter").Greeter


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.requirement("own-actor-survives", "actor-numbers")
async def test_its_process_is_killed_and_comes_back(up: Up, greeter_protocol: Any) -> None:
    async with connect_to_gateway(up.url) as stack, connect(up.bus_url) as bus:
        greeters = stack.api(greeter_protocol), client(greeter_protocol, bus)
        for greeter in greeters:
            assert await greeter.greet(name="a") == "Allinllachu, a!"
        others = set(descendants(up.process.pid))
        killed = up.kill_child("--import")
        failed = 0
        for greeter in greeters:
            while True:
                try:
                    assert await greeter.greet(name="b") == "Allinllachu, b!"
                    break
                except AylluError as error:
                    assert error.info.retryable, error
                    failed += 1
        assert failed
        # Nothing else had to start again.
        assert all(map(alive, others - {killed}))
    with httpx2.Client(base_url=up.url, timeout=30) as http:
        numbers = http.get("/metrics").text
    counted = re.search(r'actor_calls_total\{outcome="ok",service="GreeterActor"} (\d+)', numbers)
    assert counted is not None
    assert int(float(counted[1])) >= 2
    assert 'ayllu_calls_total{operation="greeter.greet",outcome="ok"}' in numbers


@pytest.mark.slow
@pytest.mark.requirement("own-actor-import")
def test_a_worker_of_them_alone_ends_as_others_do(up: Up, folder: Path) -> None:
    environment = {**os.environ, "AYLLU_BUS_URL": up.bus_url}
    command = [AYLLU, "worker", "--import", "parcels", "--data-dir", str(folder / "other")]
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
    done = subprocess.run(
        [AYLLU, "worker", "--import", "parcels:Parcel"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
