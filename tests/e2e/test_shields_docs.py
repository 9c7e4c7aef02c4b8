"""docs/shields.md: its examples are run on processes, its configuration is read, its figures are those of the benchmark."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from pathlib import Path

import anyio
import pytest
from support.pages import GATEWAY, blocks, page, run_block
from support.processes import running_up

from ayllu.actors.shields import code_guard, llama_guard, prompt_guard
from ayllu.actors.shields.hazards import CODES
from ayllu.actors.shields.prompt_guard import open_prompt_guard
from ayllu.actors.shields.settings import PromptGuardSettings, check_shields
from ayllu.runtime.config import Config
from ayllu.schemas.wire import convert
from benchmarks.prompt_guard import SETS, errors, labelled

pytestmark = pytest.mark.requirement("examples-run")

PAGE = page("shields.md")
BLOCKS = blocks(PAGE)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_examples(tmp_path: Path) -> None:
    [source] = [text for kind, text in BLOCKS if kind == "sh"]
    with running_up(tmp_path / "data") as up:
        said = run_block("sh", source.replace(GATEWAY, up.url), tmp_path)
        assert up.stop() == 0
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(said)
    second, _ = decoder.raw_decode(said[end:].lstrip())
    assert first["violation"]["violation_type"] == "prompt_injection"
    assert second["violation"]["violation_type"] == "insecure_code"


def test_the_configurations() -> None:
    for text in (text for kind, text in BLOCKS if kind == "toml"):
        check_shields(convert(tomllib.loads(text), Config).shields)


@pytest.mark.requirement("shield-prompt-guard-rules")
def test_the_figures() -> None:
    async def table() -> list[tuple[str, ...]]:
        async with open_prompt_guard(PromptGuardSettings()) as guard:
            found = [await errors(labelled(name), guard.assess) for name in SETS]
        return [tuple(str(one[attack, ""]) for one in found) for attack in (False, True)]

    rows = [re.escape(f"{made} | {held}").replace("\\ ", " ") for made, held in anyio.run(table)]
    assert re.search(rf"\| {rows[0]} \|", PAGE)
    assert re.search(rf"\| {rows[1]} \|", PAGE)


def test_the_limits() -> None:
    for number in (
        prompt_guard.MAX_CHARACTERS,
        llama_guard.MAX_CHARACTERS,
        llama_guard.MAX_BEFORE,
        code_guard.MAX_CODE,
    ):
        assert f"{number:,}" in PAGE
    assert all(f"{code} " in PAGE for code in CODES)
    assert all(f'"{test}"' in PAGE for test in code_guard.SKIPS)
