"""`ayllu tools` through a real gateway: tools are listed, shown and tried, and what they answer is safe to look at."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from support.gateway import running_gateway
from support.weather import WeatherActor

from ayllu.actors.tools.actor import ToolListActor, ToolsActor
from ayllu.actors.tools.functions.own import function_tool
from ayllu.bus import serve
from ayllu.runtime.arguments import build_parser
from ayllu.runtime.tool_commands import arguments_of, run_tools
from ayllu.schemas import Attachment, InvalidRequest, NotFound

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("tools-command")]


def repeat(text: str, times: int = 1) -> str:
    """Repeat a text.

    \x1b[31mThis is not shown.
    """
    return text * times


def draw(kind: str) -> list[str | Attachment]:
    """Draw a picture \x1b[31min red."""
    data = Attachment("data:image/png;base64,aGk=", "image/png")
    odd = Attachment("data:x/../../y;base64,aGk=", "x/../../y")
    far = Attachment("https://example.org/a.png", "image/png")
    bad = Attachment("data:image/png;base64,?", "image/png")
    return ["Look:\x1b[2J", {"data": data, "odd": odd, "far": far, "bad": bad}[kind]]


@asynccontextmanager
async def gateway() -> AsyncIterator[str]:
    tools = ToolsActor([function_tool(repeat, idempotent=True, seconds=7), function_tool(draw)])
    async with running_gateway(tools, WeatherActor()) as running, anyio.create_task_group() as own:
        await own.start(serve, running.bus, ToolListActor(running.bus))
        yield running.url
        own.cancel_scope.cancel()


async def run(url: str, *words: str) -> None:
    await run_tools(url, None, build_parser().parse_args(["tools", *words]))


async def test_tools_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    async with gateway() as url:
        await run(url)
        rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert [row[0] for row in rows] == ["draw", "repeat", "weather.forecast", "weather.now"]
        assert rows[1] == ["repeat", "tool", "idempotent", "7 s", "Repeat a text."]
        assert rows[3][1:3] == ["operation", "-"]
        await run(url, "show", "draw")
        said = capsys.readouterr().out
        assert '"kind"' in said
        assert "\x1b" not in said
        await run(url, "list", "--json")
        assert json.loads(capsys.readouterr().out)[0]["name"] == "draw"
        await run(url, "show", "repeat", "--json")
        assert json.loads(capsys.readouterr().out)["takes"] == "request"
        with pytest.raises(NotFound, match="offered are: draw, repeat"):
            await run(url, "show", "nothing")


@pytest.mark.parametrize(
    "words",
    [
        ['{"text": "12", "times": 2}'],
        ["text=12", "times=2"],
        ["@arguments.json"],
    ],
)
async def test_a_tool_is_tried(
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arguments.json").write_text('{"text": "12", "times": 2}')
    async with gateway() as url:
        await run(url, "call", "repeat", *words)
        assert capsys.readouterr().out == "1212\n"
        await run(url, "call", "repeat", *words, "--json")
        answer = json.loads(capsys.readouterr().out)
        assert answer == {"tool_name": "repeat", "content": "1212"}


@pytest.mark.requirement("own-actor-called")
async def test_an_operation_of_an_own_actor_is_called_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with gateway() as url:
        await run(url, "call", "weather.now", "city=Cusco")
        assert "Cusco" in capsys.readouterr().out


async def test_failures_are_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with gateway() as url:
        with pytest.raises(InvalidRequest, match="times: 'two' is not of type"):
            await run(url, "call", "repeat", "text=1", "times=two")
        with pytest.raises(InvalidRequest, match="neither a JSON object nor NAME=VALUE"):
            await run(url, "call", "repeat", "text")
        with pytest.raises(NotFound, match="offered are"):
            await run(url, "call", "nothing")
        with pytest.raises(InvalidRequest, match="no base64 data"):
            await run(url, "call", "draw", "kind=bad", "--out", str(tmp_path))
        with pytest.raises(InvalidRequest, match="cannot be written"):
            await run(url, "call", "draw", "kind=data", "--out", str(tmp_path / "file" / "x"))


async def test_attachments_are_saved_under_names_that_are_ours(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out" / "here"
    async with gateway() as url:
        for kind in ("data", "data", "odd", "far"):
            await run(url, "call", "draw", f"kind={kind}", "--out", str(out))
        said = capsys.readouterr().out
        assert "\x1b" not in said
        assert "attachment 1: image/png (https://example.org/a.png)" in said
        found = sorted(path.name for path in out.iterdir())
        assert found == ["attachment-1.bin", "attachment-1.png", "attachment-2.png"]
        assert (out / "attachment-2.png").read_bytes() == b"hi"
        await run(url, "call", "draw", "kind=data")
        assert "use --out DIR" in capsys.readouterr().out


async def test_values_are_json_or_texts() -> None:
    properties = {"a": {"type": "string"}, "b": {"type": "integer"}}
    given = ["a=1", "b=1", "c=[1]", "d=one", "e=", "f=x=y"]
    read = {"a": "1", "b": 1, "c": [1], "d": "one", "e": "", "f": "x=y"}
    assert arguments_of(given, properties) == read
    assert arguments_of([], {}) == {}
    with pytest.raises(InvalidRequest):
        arguments_of(["{"], {})
