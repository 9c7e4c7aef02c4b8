"""What docs/agents.md shows is what happens: its examples are run in order, on the real model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import AYLLU, Up, running_up

from ayllu.schemas import OPERATIONS

pytestmark = pytest.mark.requirement("examples-run")

PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
GATEWAY = "http://127.0.0.1:8321"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("docs"), config=None) as running:
        yield running
        assert running.stop() == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_examples_in_their_order(up: Up, tmp_path: Path) -> None:
    path = f"{Path(AYLLU).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "no_proxy": "127.0.0.1",
        "AYLLU_BUS_URL": up.bus_url,
        "gateway": up.url,  # Each block is a shell of its own.
    }
    said: list[str] = []
    for kind, text in BLOCKS:
        source = text.replace(GATEWAY, up.url)
        if kind == "sh":
            source = re.sub(r"ayllu (agents|turns|chat)", rf"ayllu \1 --url {up.url}", source)
            command = ["bash", "-euo", "pipefail", "-c", source]
        elif kind == "python":
            command = [sys.executable, "-c", source]
        else:
            continue
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert '"error"' not in done.stdout
        said.append(done.stdout)
    assert "Paris" in said[0]
    assert "completed\t" in said[0]
    assert "completed, 1 steps" in said[1]
    assert '"status":"completed"' in said[2]
    # What follows after 1.2 has what was told after it, once more.
    assert [said[3].count(f"id: 1.{index}\n") for index in range(4)] == [1, 1, 1, 2]


def test_all_operations_stand_there_with_their_routes() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `(\w+) (/[\w/]+)", PAGE, re.MULTILINE)
    assert rows == [
        (operation.name, operation.verb, operation.route)
        for operation in OPERATIONS.values()
        if operation.api == "AgenticSystem" and operation.name == operation.base_name
    ]
