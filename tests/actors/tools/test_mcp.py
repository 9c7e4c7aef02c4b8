"""Tools of MCP servers: packaged ones for Python and Node used by agents, and one that does all that can go wrong."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from mcp_types import Tool
from support.agents import asked, running_agents
from support.mcp_faults import BROKEN
from support.mcp_servers import (
    TIME,
    called,
    everything,
    faulty,
    offered_when,
    running_tools,
    servers,
)
from support.processes import alive, wait_for
from support.weather import TAIL, weather_script

from ayllu.actors.engines.scripted import Script
from ayllu.actors.tools.mcp.listing import usable_tools
from ayllu.actors.tools.mcp.settings import McpSettings
from ayllu.actors.tools.settings import ToolsConfig, check_tools
from ayllu.bus import Bus, local_bus
from ayllu.bus.client import offered_tools
from ayllu.schemas import (
    Attachment,
    DeadlineExceeded,
    EngineError,
    InvalidRequest,
    NotFound,
    ToolDefinition,
    ToolExecutionStep,
    Unavailable,
)
from ayllu.schemas.wire import convert

pytestmark = pytest.mark.asyncio
__all__ = ["everything"]


async def used(bus: Bus, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """Let an agent call tools, and return what they answered."""
    names = [name for name, _ in calls]
    wanted = [json.dumps({"name": name, "arguments": arguments}) for name, arguments in calls]
    script = cast(Script, weather_script(*wanted))
    async with running_agents(bus, script=script) as agents:
        await agents.create(
            "al",
            available_tools=[ToolDefinition(name) for name in names],
            executable_tools=set(names),
        )
        turn = (await agents.system.execute(asked("al", "Do it.", turn_id="t"))).turn
        assert str(turn.response_message.content).endswith(TAIL)
        [step] = [step for step in turn.steps if isinstance(step, ToolExecutionStep)]
        return [response.content for response in step.tool_responses]


@pytest.mark.requirement("mcp-python")
async def test_an_agent_uses_a_packaged_server_for_python() -> None:
    async with (
        local_bus() as bus,
        running_tools(bus, servers(McpSettings("time", TIME))),
    ):
        arguments = {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}
        [answer] = await used(bus, ("time.convert_time", arguments))
        assert json.loads(answer)["target"]["datetime"].endswith("T21:00:00+09:00")
        offer = (await offered_tools(bus))["time.convert_time"]
        assert offer.description == "Convert time between timezones"
        with pytest.raises(EngineError, match="Europe/Nowhere"):
            await called(bus, "time.get_current_time", timezone="Europe/Nowhere")


@pytest.mark.slow
@pytest.mark.timeout(300)  # It may have to be installed first.
@pytest.mark.requirement("mcp-node")
async def test_an_agent_uses_a_packaged_server_for_node(everything: list[str]) -> None:
    command = [*everything, "stdio"]
    async with (
        local_bus() as bus,
        running_tools(
            bus, servers(McpSettings("every", command, tools=["echo", "get-tiny-image"]))
        ),
    ):
        assert set(await offered_tools(bus)) == {"every.echo", "every.get-tiny-image"}
        echo, image = await used(
            bus, ("every.echo", {"message": "hello"}), ("every.get-tiny-image", {})
        )
        assert echo == "Echo: hello"
        [picture] = [part for part in image if isinstance(part, Attachment)]
        assert picture.mime_type == "image/png"
        with pytest.raises(NotFound):  # It stands in no allowlist.
            await called(bus, "every.get-env")


@asynccontextmanager
async def served() -> AsyncIterator[Bus]:
    """Open a bus on which the server with all faults is offered, and one that is well."""
    config = servers(faulty(seconds=1.0), faulty(name="other"))
    async with local_bus() as bus, running_tools(bus, config):
        await offered_when(bus, lambda names: {"faults.pid", "other.pid"} <= names)
        yield bus


async def is_well(bus: Bus, name: str = "faults") -> str:
    """Return the process id of a server when it answers."""
    with anyio.fail_after(20):
        while True:
            try:
                return str(await called(bus, f"{name}.pid"))
            except (Unavailable, NotFound, DeadlineExceeded):
                await anyio.sleep(0.02)


async def others_are_well(bus: Bus) -> None:
    with anyio.fail_after(1):
        assert await called(bus, "other.echo", text="well") == "well"


@pytest.mark.requirement("mcp-results")
@pytest.mark.parametrize(
    ("tool", "answer"),
    [
        ("empty", '{"sum":3}'),
        ("garbage", "after garbage"),
        ("stderr", "after noise"),
        (
            "media",
            [
                Attachment("data:image/png;base64,aGk=", "image/png"),
                Attachment("data:audio/wav;base64,aGk=", "audio/wav"),
                "a note",
            ],
        ),
    ],
)
async def test_what_tools_answer(tool: str, answer: object) -> None:
    async with served() as bus:
        assert await called(bus, f"faults.{tool}") == answer


@pytest.mark.requirement("mcp-results")
@pytest.mark.parametrize(
    ("tool", "error", "said"),
    [
        ("fail", EngineError, "there is no such file"),
        ("blob", EngineError, "no base64"),
        ("unknown", EngineError, "answer is none"),
        ("wrong", EngineError, "answer is none"),
        ("refuse", InvalidRequest, "no such argument"),
    ],
)
async def test_failures_are_said(tool: str, error: type[Exception], said: str) -> None:
    async with served() as bus:
        with pytest.raises(error, match=said):
            await called(bus, f"faults.{tool}")
        assert await is_well(bus)


@pytest.mark.requirement("mcp-contained")
@pytest.mark.parametrize("tool", ["die", "exit", "flood", "endless", "leave"])
async def test_a_server_that_ends_or_floods_in_a_call_is_started_anew(tool: str) -> None:
    async with served() as bus:
        first = await is_well(bus)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fails, bus, "faults.hang", Unavailable)
            await anyio.lowlevel.checkpoint()
            await fails(bus, f"faults.{tool}", Unavailable)
        await others_are_well(bus)
        assert await is_well(bus) != first
        assert not alive(int(first))


async def fails(bus: Bus, tool: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await called(bus, tool)


@pytest.mark.requirement("mcp-contained")
async def test_a_killed_server_is_started_anew_and_calls_in_flight_end() -> None:
    async with local_bus() as bus, running_tools(bus, servers(faulty())):
        pid = await is_well(bus)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fails, bus, "faults.hang", Unavailable)
            await anyio.lowlevel.checkpoint()
            assert await called(bus, "faults.pid") == pid  # What came before has arrived.
            os.kill(int(pid), signal.SIGKILL)
        assert await is_well(bus) != pid


@pytest.mark.requirement("mcp-contained")
async def test_a_call_that_takes_too_long_leaves_a_server_that_answers_others() -> None:
    async with served() as bus:
        first = await is_well(bus)
        with anyio.fail_after(5), pytest.raises(DeadlineExceeded, match="within 1 s"):
            await called(bus, "faults.hang")
        assert await is_well(bus) == first


@pytest.mark.requirement("mcp-contained")
async def test_a_server_that_hangs_as_a_whole_is_started_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with served() as bus:
        monkeypatch.setattr("ayllu.actors.tools.mcp.server.LIST_SECONDS", 0.5)
        first = await is_well(bus)
        with pytest.raises(DeadlineExceeded):
            await called(bus, "faults.freeze")
        await others_are_well(bus)
        assert await is_well(bus) != first
        assert not alive(int(first))


@pytest.mark.requirement("mcp-cancel")
async def test_cancel_reaches_the_server_and_the_caller_at_once() -> None:
    async with local_bus() as bus, running_tools(bus, servers(faulty())):
        with anyio.move_on_after(0.2) as scope:
            await called(bus, "faults.hang")
        assert scope.cancelled_caught
        with anyio.fail_after(5):
            while await called(bus, "faults.cancelled") != "1":
                await anyio.sleep(0.02)


@pytest.mark.requirement("mcp-cancel")
async def test_a_server_that_does_not_read_holds_up_no_cancel() -> None:
    async with local_bus() as bus, running_tools(bus, servers(faulty())):
        with anyio.move_on_after(0.2):
            await called(bus, "faults.freeze")
        began = anyio.current_time()
        with anyio.move_on_after(0.2):
            await called(bus, "faults.echo", text="a" * (1 << 20))  # More than a pipe holds.
        assert anyio.current_time() - began < 2


@pytest.mark.requirement("mcp-refused")
@pytest.mark.parametrize("tool", ["ask", "elicit"])
async def test_what_servers_ask_of_us_is_refused(tool: str) -> None:
    async with served() as bus:
        assert "not supported" in str(await called(bus, f"faults.{tool}"))


@pytest.mark.requirement("mcp-listing")
async def test_what_a_server_says_of_its_tools_is_bounded_and_its_hints_are_not_trusted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = servers(faulty("broken", idempotent=["echo"]))
    async with local_bus() as bus, running_tools(bus, config):
        offers = await offered_tools(bus)
        assert {name for name, offer in offers.items() if offer.idempotent} == {"faults.echo"}
        assert max(len(offer.description) for offer in offers.values()) <= 2003
        for name in BROKEN:
            assert f"faults.{name}" not in offers
            assert f"the tool '{name}' of MCP server faults is left out" in caplog.text
        # An expression that takes for ever is not followed.
        assert "pattern" not in offers["faults.echo"].parameters["properties"]["text"]
        text = "a" * 40 + "b"
        with anyio.fail_after(5):
            assert await called(bus, "faults.echo", text=text) == text


@pytest.mark.requirement("mcp-listing")
async def test_schemas_may_have_parts_that_are_referred_to(
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = {"type": "object", "properties": {"pattern": {"type": "string", "pattern": "^a"}}}
    schema = {
        "type": "object",
        "properties": {"a/b": {"$ref": "#/$defs/a~1b"}, "other": {"$ref": "#/$defs/a~1b"}},
        "$defs": {"a/b": place},
    }
    [listed] = usable_tools([Tool(name="t", input_schema=schema)], faulty())
    assert listed.parameters["properties"] == schema["properties"]
    assert listed.parameters["$defs"]["a/b"]["properties"] == {"pattern": {"type": "string"}}
    deep: dict[str, Any] = {"type": "object"}
    for _ in range(40):
        deep = {"type": "object", "properties": {"x": deep}}
    assert usable_tools([Tool(name="deep", input_schema=deep)], faulty()) == []
    assert "nested deeper than 48 levels" in caplog.text


@pytest.mark.requirement("mcp-listing")
async def test_tools_that_come_later_are_offered() -> None:
    async with served() as bus:
        assert "faults.grown" not in await offered_tools(bus)
        assert await called(bus, "faults.grow") == "it has grown"
        await offered_when(bus, lambda names: "faults.grown" in names)


@pytest.mark.requirement("mcp-contained")
@pytest.mark.parametrize("mode", ["mute", "exit", "missing", "variable"])
async def test_a_server_that_does_not_start_holds_up_nothing(
    mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    monkeypatch.setattr("ayllu.actors.tools.mcp.server.READY_SECONDS", 0.3)
    bad = {
        "missing": McpSettings("bad", ["no-such-program-here"]),
        "variable": faulty(name="bad", env=["NO_SUCH_VARIABLE"]),
    }.get(mode) or faulty(mode, name="bad", start_seconds=0.5)
    async with local_bus() as bus, running_tools(bus, servers(bad, faulty())):
        assert await called(bus, "faults.echo", text="hi") == "hi"
        with anyio.fail_after(5):
            while "MCP server bad crashed, starts again" not in caplog.text:
                await anyio.sleep(0.02)


@pytest.mark.requirement("mcp-contained")
async def test_noise_before_the_start_is_no_harm() -> None:
    async with local_bus() as bus, running_tools(bus, servers(faulty("noise"))):
        assert await called(bus, "faults.echo", text="hi") == "hi"


@pytest.mark.requirement("mcp-environment")
async def test_servers_get_only_the_variables_that_they_shall_get(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AYLLU_BUS_URL", "SECRET", "SHARED", "OURS"):
        monkeypatch.setenv(name, f"{name}!")
    settings = faulty(env=["SHARED"], env_from={"THEIRS": "OURS"}, set_env={"PLAIN": "1"})
    async with local_bus() as bus, running_tools(bus, servers(settings)):
        found = json.loads(str(await called(bus, "faults.environment")))
    assert {found["SHARED"], found["THEIRS"], found["PLAIN"]} == {"SHARED!", "OURS!", "1"}
    assert not {"AYLLU_BUS_URL", "SECRET", "OURS"} & set(found)


@pytest.mark.requirement("mcp-processes")
async def test_nothing_that_a_server_started_outlives_it() -> None:
    async with local_bus() as bus, running_tools(bus, servers(faulty())):
        pids = [int(await is_well(bus)), int(str(await called(bus, "faults.child")))]
        assert all(map(alive, pids))
    for pid in pids:
        await anyio.to_thread.run_sync(wait_for, "its end", lambda pid=pid: not alive(pid))


@pytest.mark.requirement("mcp-settings")
@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"name": "a"}, "either a `command` or a `url`"),
        ({"name": "a", "command": ["x"], "url": "http://x"}, "either a `command` or a `url`"),
        ({"name": "a", "command": []}, "length"),
        ({"name": "a", "command": [""]}, "is a program"),
        ({"name": "a", "command": "x --y"}, "array"),
        ({"name": "a", "command": ["x"], "key_variable": "K"}, "`key_variable` is for a `url`"),
        ({"name": "a", "command": ["x"], "env": ["A"], "set_env": {"A": "1"}}, "given twice"),
        ({"name": "a", "url": "http://x", "cwd": "/"}, "are for a `command`"),
        ({"name": "a", "url": "http://x?key=secret"}, "an address of an API"),
        ({"name": "a", "url": "ftp://x"}, "an address of an API"),
        ({"name": "a.b", "command": ["x"]}, "regex"),
        ({"name": "a", "command": ["x"], "tools": ["b"], "idempotent": ["c"]}, "leaves out: c"),
        ({"name": "a", "command": ["x"], "shell": True}, "shell"),
    ],
)
async def test_wrong_settings_are_refused(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        check_tools(convert({"mcp": [entry]}, ToolsConfig))


@pytest.mark.requirement("mcp-settings")
async def test_two_servers_have_two_names() -> None:
    with pytest.raises(InvalidRequest, match="same name"):
        check_tools(servers(faulty(), faulty()))
