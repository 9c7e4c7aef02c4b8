"""docs/tools.md: its examples are run, its configuration is read, and its numbers are those of the code."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator

import pytest
from support.pages import GATEWAY, blocks, page, run_block
from support.processes import Up, running_up

from ayllu.actors.sandbox import DEFAULT
from ayllu.actors.tools import (
    arithmetic,
    code_interpreter,
    image_gen,
    math,
    search_providers,
    web_api,
)
from ayllu.actors.tools.settings import ToolsConfig, check_tools
from ayllu.runtime.config import Config
from ayllu.schemas import AgenticSystemCreateRequest, BuiltinTool
from ayllu.schemas.wire import convert

PAGE = page("tools.md")
BLOCKS = blocks(PAGE)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("docs") / "data") as running:
        yield running
        assert running.stop() == 0


@pytest.mark.slow
@pytest.mark.requirement("tool-settings")
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_examples_in_their_order(up: Up, tmp_path_factory: pytest.TempPathFactory) -> None:
    said = [""]
    for kind, text in BLOCKS:
        if kind == "sh":
            source = text.replace(GATEWAY, up.url)
            said.append(run_block("sh", source, tmp_path_factory.mktemp("run")))
        elif kind == "":
            assert text.strip() in said[-1]
    assert all(f'"name":"{name}"' in said[1] for name in BuiltinTool)


@pytest.mark.requirement("tool-settings")
def test_the_configuration_and_the_agent() -> None:
    [text] = [text for kind, text in BLOCKS if kind == "toml"]
    config = convert(tomllib.loads(text), Config).tools
    check_tools(config)
    default = ToolsConfig()
    assert set(config.builtin) == set(default.builtin)
    assert config.code_interpreter == default.code_interpreter
    assert config.web_search is not None
    assert config.image_gen is not None
    [whole] = [text for kind, text in blocks(page("configuration.md")) if kind == "toml"]
    configured = convert(tomllib.loads(whole), Config).tools
    assert set(configured.builtin) == set(default.builtin)
    assert configured.code_interpreter == default.code_interpreter
    [agent] = [json.loads(text) for kind, text in BLOCKS if kind == "json"]
    convert({"uuid": "u", "instructions": "", "model": "m", **agent}, AgenticSystemCreateRequest)


@pytest.mark.requirement("tool-settings")
def test_the_numbers() -> None:
    limits = ToolsConfig().code_interpreter
    digits = len(str(2**arithmetic.MAX_BITS)) - 1
    for text in (
        *(
            f"| {limits.seconds:g} s |",
            f"| {limits.memory_mib} MiB |",
            f"| {limits.output_kib} KiB |",
        ),
        *(f"| {limits.disk_mib} MiB, {DEFAULT.disk_files} files |", f"| {DEFAULT.processes} |"),
        f"| {code_interpreter.MAX_FILES}, together {code_interpreter.MAX_FILE_BYTES >> 20} MiB |",
        f"| {code_interpreter.MAX_CODE:,} characters |",
        f"at most {math.MAX_LENGTH} characters and {math.MAX_DEPTH} levels",
        f"grow to {digits} digits",
        f"at most {search_providers.MAX_TITLE} characters, extracts {search_providers.MAX_SNIPPET}",
        f"more than {image_gen.MAX_IMAGE >> 20} MiB",
        f"obeyed up to {web_api.LONGEST_PAUSE:g} s",
    ):
        assert text in PAGE, text
