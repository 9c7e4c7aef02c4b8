"""What docs/memory.md shows is what happens: its examples are run in order, its filters are tried."""

from __future__ import annotations

import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from support.pages import GATEWAY, blocks, page, run_block
from support.processes import Up, running_up

from ayllu.runtime.config import Config
from ayllu.schemas import OPERATIONS, MemoryBankQuery, decode
from ayllu.schemas.filters import matches
from ayllu.schemas.wire import convert

pytestmark = pytest.mark.requirement("examples-run")

PAGE = page("memory.md")
BLOCKS = blocks(PAGE)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("docs")) as running:
        yield running
        assert running.stop() == 0


def without_numbers(text: str) -> str:
    """Return a text without its numbers: scores differ a little from one processor to the next."""
    return re.sub(r"\d+(\.\d+)?", "#", text).strip()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_examples_in_their_order(up: Up, tmp_path: Path) -> None:
    said = ""
    for kind, text in BLOCKS:
        if kind == "":
            assert without_numbers(said) == without_numbers(text)
        if kind not in ("sh", "python"):
            continue
        source = text.replace(GATEWAY, up.url)
        if kind == "sh":
            source = source.replace("ayllu bank", f"ayllu bank --url {up.url}")
        said = run_block(kind, source, tmp_path)


def test_the_table_of_filters() -> None:
    [metadata] = [msgspec.json.decode(text) for kind, text in BLOCKS if kind == "json"]
    rows = re.findall(r"^\| `(\{.*\})` \| (true|false) \|", PAGE, re.MULTILINE)
    assert len(rows) > 15
    for text, expected in rows:
        wanted = decode(f'{{"filter": {text}}}', MemoryBankQuery).filter
        assert wanted is not None
        assert matches(wanted, metadata) is (expected == "true"), text
    shown = set(re.findall(r'"op": "(\w+)"', PAGE))
    assert shown == {"eq", "ne", "in", "lt", "gt", "exists", "and", "not"}


def test_the_configuration() -> None:
    [text] = [text for kind, text in BLOCKS if kind == "toml"]
    config = convert(tomllib.loads(text), Config)
    assert [embedder.name for embedder in config.embedders] == ["multilingual", "all-minilm-l6-v2"]


def test_all_operations_stand_there_with_their_routes() -> None:
    rows = re.findall(r"^\| `(memory_banks?\.\w+)` \| `(\w+) (/\w+/\w+)", PAGE, re.MULTILINE)
    assert rows == [
        (operation.name, operation.verb, operation.route)
        for operation in OPERATIONS.values()
        if operation.api == "MemoryBanks"
    ]
