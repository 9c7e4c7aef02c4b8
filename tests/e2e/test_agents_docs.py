"""What docs/agents.md shows is what happens: its examples are run in order, on the real model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pages import GATEWAY, blocks, page, run_block
from support.processes import Up, running_up

from ayllu.schemas import OPERATIONS

pytestmark = pytest.mark.requirement("examples-run")

PAGE = page("agents.md")
BLOCKS = blocks(PAGE)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("docs"), config=None) as running:
        yield running
        assert running.stop() == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_examples_in_their_order(up: Up, tmp_path: Path) -> None:
    # Each block is a shell of its own.
    environment = {"AYLLU_BUS_URL": up.bus_url, "gateway": up.url}
    said: list[str] = []
    for kind, text in BLOCKS:
        source = text.replace(GATEWAY, up.url)
        if kind == "sh":
            source = re.sub(
                r"ayllu (agents|turns|chat|approvals)", rf"ayllu \1 --url {up.url}", source
            )
        elif kind != "python":
            continue
        said.append(run_block(kind, source, tmp_path, environment))
    assert "Paris" in said[0]
    assert "completed\t" in said[0]
    assert "completed, 1 steps" in said[1]
    assert '"status":"completed"' in said[2]
    # What follows after 1.2 has what was told after it, once more.
    asks, ran = next(text for text in said if text.startswith("wants")).splitlines()
    assert asks.startswith("wants {'expression'")
    assert "391" in ran
    assert [said[3].count(f"id: 1.{index}\n") for index in range(4)] == [1, 1, 1, 2]


def test_all_operations_stand_there_with_their_routes() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `(\w+) (/[\w/]+)", PAGE, re.MULTILINE)
    assert rows == [
        (operation.name, operation.verb, operation.route)
        for operation in OPERATIONS.values()
        if operation.api == "AgenticSystem" and operation.name == operation.base_name
    ]
