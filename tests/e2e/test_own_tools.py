"""What docs/own-tools.md shows is what happens, and nothing of a worker's servers is left when it is killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pages import blocks, page, run_block
from support.processes import (
    AYLLU,
    SCRIPTED,
    Up,
    alive,
    descendants,
    run_ayllu,
    running_up,
    wait_for,
)

from ayllu.actors.tools.functions.settings import FunctionSettings
from ayllu.actors.tools.mcp import listing, process, server, stdio
from ayllu.actors.tools.mcp.settings import McpSettings
from ayllu.runtime.config import Config
from ayllu.schemas.wire import convert

PAGE = page("own-tools.md")
BLOCKS = blocks(PAGE)
FUNCTIONS, SERVERS = [text for kind, text in BLOCKS if kind == "toml"]
PARCELS, DICE, OPERATION = [text for kind, text in BLOCKS if kind == "python"]
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "parcels.py").write_text(PARCELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("PATH", f"{Path(AYLLU).parent}{os.pathsep}{os.environ['PATH']}")
        # The server elsewhere has no token here: that holds up nothing.
        with running_up(folder / "data", config=f"{SCRIPTED}{FUNCTIONS}{SERVERS}") as running:
            yield running
            assert running.stop() == 0


@pytest.mark.slow
@pytest.mark.requirement("examples-run", "tools-command")
def test_the_examples_in_their_order(up: Up, tmp_path: Path) -> None:
    said = ""
    for kind, text in BLOCKS:
        if kind == "":
            assert said.endswith(text)
        if kind == "sh":
            source = text.replace("ayllu tools\n", f"ayllu tools --url {up.url}\n")
            source = re.sub(r"ayllu tools (show|call)", rf"ayllu tools \1 --url {up.url}", source)
            said = run_block("sh", source, tmp_path)
    assert "time.get_current_time\ttool\tidempotent" in said
    assert "time.convert_time" not in said


@pytest.mark.slow
@pytest.mark.requirement("tools-command")
def test_what_fails_ends_with_an_error_and_no_traceback(up: Up) -> None:
    for arguments, status in (
        (["parcel", "number=ZZ"], 1),
        (["parcel", "number=AB-123", "unit=years"], 2),
        (["nothing"], 1),
        (["time.get_current_time", "timezone=Nowhere"], 1),
    ):
        done = subprocess.run(
            [AYLLU, "tools", "call", "--url", up.url, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.startswith("ayllu tools: ")
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.requirement("examples-run", "tools-command")
@pytest.mark.parametrize("source", [DICE, (EXAMPLES / "tool_function.py").read_text()])
def test_programs_offer_functions_on_the_bus(up: Up, source: str, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(
        source.replace("def parcel(", "def parcel_here(").replace("(parcel,", "(parcel_here,")
    )
    name, call = ("dice", ["dice", "sides=1"]) if source == DICE else ("parcel_here", [])
    call = call or ["parcel_here", "number=CD-456", "--bus", up.bus_url]
    with subprocess.Popen([sys.executable, str(file), up.bus_url]) as program:
        try:

            def offered() -> bool:
                return f'"{name}"' in run_ayllu("tools", "list", "--json", "--url", up.url).stdout

            wait_for("the tool", offered)
            said = run_ayllu("tools", "call", "--url", up.url, *call).stdout
            assert json.loads(said) in (1, {"place": "Puno", "days": 5})
        finally:
            program.kill()


@pytest.mark.slow
@pytest.mark.requirement("mcp-processes", "function-contained")
def test_kill_9_of_the_worker_leaves_nothing_behind_and_all_comes_back(up: Up) -> None:
    worker = up.child("worker tools")
    before = [pid for pid, line in descendants(worker).items()]
    lines = " ".join(descendants(worker).values())
    assert "mcp_server_time" in lines
    assert "functions.child" in lines
    up.kill_child("worker tools")
    wait_for("the end of what it started", lambda: not any(map(alive, before)))

    def back() -> bool:
        return "time.get_current_time" in run_ayllu("tools", "--url", up.url).stdout

    wait_for("the tools", back, 30)
    said = run_ayllu(
        "tools", "call", "--url", up.url, "time.get_current_time", "timezone=UTC"
    ).stdout
    assert json.loads(said)["timezone"] == "UTC"


@pytest.mark.requirement("mcp-settings", "function-settings")
def test_the_page_says_the_fields_and_the_limits() -> None:
    for field in McpSettings.__struct_fields__:
        assert f"| `{field}` |" in PAGE
    default = McpSettings("x")
    assert (default.seconds, default.start_seconds, default.max_output) == (60, 60, 65536)
    function = FunctionSettings("a:b")
    assert f"at most `at_once` of them ({function.at_once})" in PAGE
    assert f"`seconds` ({function.seconds:g})" in PAGE
    assert f"`memory_mib` ({function.memory_mib}," in PAGE
    assert f"cut after {listing.MAX_DESCRIPTION:,} characters" in PAGE
    assert f"most {listing.MAX_TOOLS} tools and {listing.MAX_ALL >> 10} KiB" in PAGE
    assert f"at most {listing.MAX_SCHEMA >> 10} KiB" in PAGE
    assert f"beyond {listing.MAX_NODES:,} parts" in PAGE
    assert f"within {server.LIST_SECONDS:g} s either" in PAGE
    assert f"at most {server.READY_SECONDS:g} s" in PAGE
    assert f"{stdio.UNASKED_MESSAGES:,} messages unasked in {stdio.UNASKED_SECONDS:g} s" in PAGE
    assert f"{stdio.MAX_LINE >> 20} MiB" in PAGE
    assert f"{process.LOGGED_LINES} lines in {process.LOGGED_SECONDS:g} s" in PAGE


@pytest.mark.requirement("mcp-settings", "function-settings")
def test_the_configurations() -> None:
    [whole] = [text for kind, text in blocks(page("configuration.md")) if kind == "toml"]
    uncommented = re.sub(
        r"^# (?=\[\[tools\.(?:functions|mcp)\]\]|(?:function|name = \"files\"|command) ?)",
        "",
        whole,
        flags=re.MULTILINE,
    )
    example = (EXAMPLES / "tool_mcp.toml").read_text()
    with_all = re.sub(r"^# (?=\[\[|\w+ = )", "", example, flags=re.MULTILINE)
    assert len(tomllib.loads(with_all)["tools"]["mcp"]) == 3
    for text in (FUNCTIONS, SERVERS, uncommented, example, with_all):
        config = convert(tomllib.loads(text), Config)
        config.check()
        assert config.tools.functions or config.tools.mcp
    assert "tool=True" in OPERATION
