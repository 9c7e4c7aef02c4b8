"""What docs/teams.md shows is what happens: its examples are run, on the real model; programs on the bus in two languages."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.node import node_with_packages
from support.pages import GATEWAY, blocks, page, run_block
from support.processes import Up, running_up

pytestmark = [pytest.mark.requirement("examples-run"), pytest.mark.slow]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NATS = ROOT / "tests" / "tools" / "nats"
BLOCKS = blocks(page("teams.md"))


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("docs"), config=None) as running:
        yield running
        assert running.stop() == 0


def run(command: list[str], folder: Path) -> str:
    """Run an example, which must end well, and return what it says."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_in_their_order(up: Up, tmp_path: Path) -> None:
    said = []
    for kind, text in BLOCKS:
        source = text.replace(GATEWAY, up.url)
        source = re.sub(r"ayllu (agents|turns|trace)", rf"ayllu \1 --url {up.url}", source)
        said.append(run_block(kind, source, tmp_path))
    assert said[0] == "support\n"
    assert said[1].splitlines() == ["poet completed", "completed 1 turn below"]
    assert "  + ask_poet: turn " in said[2]
    assert "  | poet completed" in said[2]
    assert "ask_poet" in said[2].rpartition("tokens")[2]


@pytest.mark.requirement("inbox-turn", "inbox-reply", "inbox-events")
def test_programs_on_the_bus_in_two_languages(up: Up, tmp_path: Path) -> None:
    agent = 'uuid = "teller"\ninstructions = "Help."\nmodel = "smollm2"\nmax_tokens = 8\n'
    create = f"ayllu agents --url {up.url} create teller.toml"
    (tmp_path / "teller.toml").write_text(agent)
    run_block("sh", create, tmp_path)
    told = run([sys.executable, str(EXAMPLES / "inbox.py"), up.bus_url, "teller"], tmp_path)
    answer, *events = told.splitlines()
    assert answer
    numbers = [line.split() for line in events if line[:1].isdigit()]
    assert numbers[0] == ["0", "step_start"]
    assert numbers[-1][1] == "step_end"
    node = node_with_packages(NATS)
    (tmp_path / "node_modules").symlink_to(NATS / "node_modules")
    script = tmp_path / "inbox.mjs"
    script.write_text((EXAMPLES / "inbox.mjs").read_text())
    assert run([node, str(script), up.bus_url, "teller"], tmp_path).strip()


@pytest.mark.requirement("team-fan-out")
def test_the_research_team(up: Up, tmp_path: Path) -> None:
    told = run([sys.executable, str(EXAMPLES / "research_team.py"), up.url], tmp_path)
    asked = re.findall(r"^chief asks (\w+)$", told, re.MULTILINE)
    assert set(asked) <= {"geographer", "historian", "cook"}
    assert asked
    assert f"{len(asked)} turns below" in told
