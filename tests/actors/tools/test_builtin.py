"""The built-in tools of a deployment: which are offered, to whom, and what can be wrong in its configuration."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from ayllu.actors.prompts import forced_call_schema
from ayllu.actors.sandbox import probing
from ayllu.actors.tools import builtin
from ayllu.actors.tools.actor import ToolListActor, offer_of
from ayllu.actors.tools.builtin import builtin_tools
from ayllu.actors.tools.opening import tool_starts
from ayllu.actors.tools.settings import ImageGenSettings, ToolsConfig, WebSearchSettings
from ayllu.bus import Bus, client, local_bus, serve
from ayllu.bus.client import offered_tools
from ayllu.runtime.config import load_config
from ayllu.schemas import (
    BuiltinTool,
    ChatCompletionRequest,
    Dialog,
    InvalidRequest,
    Message,
    NotFound,
    Role,
    ToolDefinition,
    ToolList,
    ToolRequest,
    Tools,
    Unsupported,
)


@asynccontextmanager
async def deployment(config: ToolsConfig) -> AsyncIterator[Bus]:
    async with local_bus() as bus, anyio.create_task_group() as tasks:
        for start in tool_starts(bus, config).values():
            await tasks.start(lambda start=start, **keywords: start(**keywords))
        await tasks.start(serve, bus, ToolListActor(bus))
        yield bus
        tasks.cancel_scope.cancel()


async def offered(bus: Bus) -> dict[str, bool]:
    """Return the names of what is offered, and whether it may be made again."""
    return {offer.name: offer.idempotent async for offer in client(ToolList, bus).list()}


@pytest.mark.asyncio
@pytest.mark.requirement("tool-settings")
async def test_all_four_are_offered_and_called_over_the_bus() -> None:
    async with deployment(ToolsConfig()) as bus:
        found = await offered(bus)
        tools = client(Tools, bus)
        assert (await tools.call(ToolRequest("math", {"expression": "2**70"}))).content == str(
            2**70
        )
        for name in ("web_search", "image_gen"):
            field = "query" if name == "web_search" else "prompt"
            with pytest.raises(Unsupported, match=rf"\[tools.{name}\]"):
                await tools.call(ToolRequest(name, {field: "x"}))
        if "code_interpreter" in found:
            code = ToolRequest(
                "code_interpreter", {"code": "open('x.txt', 'w').write('x' * 2_000_000)"}
            )
            answer = (await tools.call(code)).content
            assert isinstance(answer, list)
            assert str(answer[0]).startswith("2000000\n")
    assert set(found) | {"code_interpreter"} == set(BuiltinTool)
    # Another search does no harm; another picture costs, also for agents that were made before it was configured.
    assert not found.pop("image_gen")
    assert all(found.values())


@pytest.mark.asyncio
@pytest.mark.requirement("tool-settings")
async def test_a_call_of_each_can_be_forced() -> None:
    """Their schemas are such that engines make grammars of them."""
    async with deployment(ToolsConfig()) as bus:
        offers = await offered_tools(bus)
    for offer in offers.values():
        tool = ToolDefinition(offer.name, offer.parameters)
        message = Message(role=Role.user, content="Go.")
        request = ChatCompletionRequest(
            "m", Dialog(message), available_tools=[tool], tool_choice=offer.name
        )
        assert forced_call_schema(request) is not None


@pytest.mark.asyncio
@pytest.mark.requirement("tool-settings")
async def test_only_what_is_named_is_offered() -> None:
    async with deployment(ToolsConfig(builtin=[BuiltinTool.math])) as bus:
        assert await offered(bus) == {"math": True}
        with pytest.raises(NotFound, match="offered are: math"):
            await client(Tools, bus).call(ToolRequest("web_search", {"query": "x"}))
    async with deployment(ToolsConfig(builtin=[])) as bus:
        assert await offered(bus) == {}


@pytest.mark.asyncio
@pytest.mark.requirement("tool-code-absent")
@pytest.mark.parametrize("alone", [False, True])
async def test_without_a_sandbox_code_is_not_offered(
    alone: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(probing, "_programs", lambda: iter(()))
    probing.find_sandbox.cache_clear()
    try:
        names = [BuiltinTool.code_interpreter] if alone else list(BuiltinTool)
        with caplog.at_level(logging.WARNING):
            async with deployment(ToolsConfig(builtin=names)) as bus:
                found = await offered(bus)
                with pytest.raises(NotFound):
                    await client(Tools, bus).call(ToolRequest("code_interpreter", {"code": "1"}))
    finally:
        probing.find_sandbox.cache_clear()
    assert set(found) == set(names) - {"code_interpreter"}
    assert "install the system's package bubblewrap" in caplog.text


@pytest.mark.asyncio
@pytest.mark.requirement("tool-settings")
async def test_what_is_not_configured_has_the_limits_of_what_will_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOOL_TEST_KEY", "key")
    configured = ToolsConfig(
        web_search=WebSearchSettings("brave", key_variable="TOOL_TEST_KEY"),
        image_gen=ImageGenSettings("http://127.0.0.1:1", "m"),
    )
    async with builtin_tools(ToolsConfig()) as before, builtin_tools(configured) as after:
        assert [offer_of(tool) for tool in before] == [offer_of(tool) for tool in after]


@pytest.mark.requirement("tool-settings")
@pytest.mark.parametrize(
    ("lines", "entry"),
    [
        ('builtin = ["maths"]', "tools.builtin[0]"),
        ('builtin = ["math", "math"]', "tools.builtin"),
        ("code_interpreter = { seconds = 0 }", "tools.code_interpreter.seconds"),
        ("code_interpreter = { memory_mib = 1 }", "tools.code_interpreter.memory_mib"),
        ("code_interpreter = { network = true }", "network"),
        ("web_search = {}", "provider"),
        ('web_search = { provider = "bing" }', "tools.web_search.provider"),
        ('web_search = { provider = "brave" }', "tools.web_search.key_variable"),
        ('web_search = { provider = "tavily" }', "tools.web_search.key_variable"),
        ('web_search = { provider = "searxng" }', "tools.web_search.url"),
        ('web_search = { provider = "searxng", url = "search.example" }', "tools.web_search.url"),
        ('web_search = { provider = "searxng", url = "ftp://a.example" }', "tools.web_search.url"),
        ('web_search = { provider = "searxng", url = "http://" }', "tools.web_search.url"),
        ('web_search = { provider = "searxng", url = "http://a:x" }', "tools.web_search.url"),
        ('web_search = { provider = "searxng", url = "http://[::1" }', "tools.web_search.url"),
        (
            'web_search = { provider = "searxng", url = "http://u:p@a.example" }',
            "tools.web_search.url",
        ),
        (
            'web_search = { provider = "searxng", url = "http://a.example?q=" }',
            "tools.web_search.url",
        ),
        (
            'web_search = { provider = "brave", key_variable = "not a name" }',
            "tools.web_search.key_variable",
        ),
        (
            'web_search = { provider = "brave", key_variable = "K", results = 99 }',
            "tools.web_search.results",
        ),
        ('image_gen = { url = "http://a.example" }', "model"),
        ('image_gen = { url = "a.example", model = "m" }', "tools.image_gen.url"),
        ('image_gen = { url = "http://a.example/ v1", model = "m" }', "tools.image_gen.url"),
        ('image_gen = { url = "http://a.example", model = "" }', "tools.image_gen.model"),
    ],
)
def test_what_is_wrong_is_refused_with_its_entry(lines: str, entry: str, tmp_path: Path) -> None:
    path = tmp_path / "ayllu.toml"
    path.write_text(f"[tools]\n{lines}\n")
    with pytest.raises(InvalidRequest) as raised:
        load_config(path)
    assert entry in raised.value.message
    assert "u:p" not in raised.value.message


@pytest.mark.requirement("tool-settings")
def test_what_tools_say_can_be_configured(tmp_path: Path) -> None:
    path = tmp_path / "ayllu.toml"
    path.write_text(f"{builtin._SEARCH}\n{builtin._IMAGES}\n")
    config = load_config(path).tools
    assert config.web_search is not None
    assert (config.web_search.provider, config.web_search.key_variable) == (
        "brave",
        "BRAVE_API_KEY",
    )
    assert config.image_gen is not None
    assert config.image_gen.url == "https://api.openai.com/v1"
