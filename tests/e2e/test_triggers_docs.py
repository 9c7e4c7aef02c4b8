"""What docs/triggers.md shows is what happens, on the real model; so is the pipeline of the examples, and the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pages import GATEWAY, blocks, page, run_block
from support.processes import Up, run_ayllu, running_up

from ayllu.runtime.arguments import build_parser
from ayllu.schemas import OPERATIONS

PAGE = page("triggers.md")
BLOCKS = blocks(PAGE)
EXAMPLE = Path(__file__).parents[2] / "examples" / "pipeline.py"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("triggers"), config=None) as running:
        yield running
        assert running.stop() == 0


@pytest.mark.slow
@pytest.mark.requirement("examples-run")
def test_the_examples_in_their_order(up: Up, tmp_path: Path) -> None:
    # Each block is a shell of its own.
    said: list[str] = []
    for kind, text in BLOCKS:
        source = text.replace(GATEWAY, up.url)
        if kind == "sh":
            source = re.sub(
                r"ayllu (agents|turns|chat|triggers)", rf"ayllu \1 --url {up.url}", source
            )
        said.append(run_block(kind, source, tmp_path, {"AYLLU_BUS_URL": up.bus_url}))
    created, reviewed, tried, ordered, morning = said
    assert "ayllu.v1.event.turn.writer.completed\t0 fired" in created
    assert "The writer said: " in reviewed
    assert json.loads(tried) == {
        "starts": True,
        "message": "The writer said: Lima.",
        "limits": {"tokens": 4000, "steps": 5},
    }
    assert ordered.startswith("completed ayllu.v1.event.shop.order ")
    assert '"next_at"' in morning
    assert "T08:00:00Z" in morning


@pytest.mark.slow
@pytest.mark.requirement("examples-run", "trigger-pipeline")
def test_a_pipeline_of_triggers(up: Up) -> None:
    # Twice: what is there already is no obstacle, and the second order is another one.
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(EXAMPLE), up.url, up.bus_url],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert [line.partition(":")[0] for line in lines[1::2]] == [
            "1. shop-clerk completed",
            "2. shop-packer completed",
            "3. shop-courier completed",
        ]
        assert [line.partition("; ")[2] for line in lines[2::2]] == [
            f"{left} steps are left" for left in (9, 8, 7)
        ]


@pytest.mark.slow
@pytest.mark.requirement("trigger-commands")
def test_the_command(up: Up, tmp_path: Path) -> None:
    def ayllu(*words: str, stdin: str = "", status: int = 0) -> subprocess.CompletedProcess[str]:
        done = run_ayllu("triggers", "--url", up.url, *words, stdin=stdin)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done

    file = tmp_path / "bad.toml"
    file.write_text('name = "bad"\nagent_id = "nobody"\nsubject = "turn.x.done"\nlimit = 5\n')
    assert f"{file}: " in ayllu("create", str(file), status=2).stderr
    file.write_text('name = "bad"\nagent_id = "nobody"\nsubject = "turn.x.done"\n')
    told = ayllu("create", str(file), status=2).stderr
    assert "not 'done'" in told
    assert "no agent 'nobody'" in told
    assert "cannot be read" in ayllu("create", str(tmp_path / "none.toml"), status=2).stderr
    agent = json.dumps({"uuid": "cook", "instructions": "", "model": "smollm2"})
    assert run_ayllu("agents", "--url", up.url, "create", "-", stdin=agent).returncode == 0
    config = json.dumps({"agent_id": "cook", "name": "x", "subject": "meal.\u001b[1m"})
    assert "no token" in ayllu("create", "-", stdin=config, status=2).stderr
    config = json.dumps({"agent_id": "cook", "name": "x", "subject": "meal.*"})
    assert ayllu("create", "-", "--name", "meals", stdin=config).stdout == "meals\n"
    listed = [json.loads(line) for line in ayllu("list", "--json").stdout.splitlines()]
    assert [one["subject"] for one in listed if one["name"] == "meals"] == ["ayllu.v1.event.meal.*"]
    assert "meals\tcook\tayllu.v1.event.meal.*\t0 fired" in ayllu().stdout
    assert json.loads(ayllu("show", "meals").stdout)["config"]["agent_id"] == "cook"
    seen = json.loads(ayllu("try", "meals", '{"dish": "soup"}', "--subject", "meal.noon").stdout)
    assert seen["message"] == 'On ayllu.v1.event.meal.noon:\n\n{"dish":"soup"}'
    assert "JSON object" in ayllu("try", "meals", "[]", status=2).stderr
    ayllu("delete", "meals")
    assert "no trigger 'meals'" in ayllu("show", "meals", status=1).stderr


@pytest.mark.requirement("trigger-commands")
def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    def help_of(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args(["triggers", *words, "--help"])
        assert ended.value.code == 0
        return capsys.readouterr().out

    whole = help_of().partition("example:")[2]
    for action in ("list", "show", "create", "try", "delete"):
        assert f"ayllu triggers {action}" in whole
        assert "ayllu triggers" in help_of(action)
    told = help_of("create")
    assert "turn.AGENT.completed" in told
    assert "cron" in told


def test_all_operations_stand_there_with_their_routes() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \| `(\w+) (/[\w/]+)", PAGE, re.MULTILINE)
    assert rows == [
        (operation.name, operation.verb, operation.route)
        for operation in OPERATIONS.values()
        if operation.api == "Triggers"
    ]
