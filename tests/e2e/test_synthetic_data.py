"""`ayllu synthesize` as a user runs it, and what docs/synthetic-data.md says."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pages import GATEWAY, blocks, page, run_block
from support.processes import Up, run_ayllu, running_up

from ayllu.actors.synthetic.selection import Fate
from ayllu.runtime.config import Config
from ayllu.schemas import OPERATIONS, FilteringFunction
from ayllu.schemas.wire import convert

pytestmark = pytest.mark.slow
CONFIG = """
[[models]]
name = "echo"
engine = "scripted"
source = "echo"

[[rewards]]
name = "exact"
engine = "program"
function = "exact_answer"
"""
PAGE = page("synthetic-data.md")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_up(tmp_path_factory.mktemp("data") / "data", config=CONFIG) as running:
        yield running
        assert running.stop() == 0


@pytest.mark.requirement("synthetic-command")
def test_data_are_made_of_a_file_of_prompts(up: Up, tmp_path: Path) -> None:
    url = ["--url", up.url]
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"say {n}", "reference": f"say {n % 2}"} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored = ["--reward", "exact", "--threshold", "1", "--max-similarity", "1"]
    made = run_ayllu("synthesize", str(file), *scored, "--job", "j", "--dataset", "d", *url)
    assert made.returncode == 0, made.stderr
    # Two of the prompts are their own reference; of four equal answers to each, one is new.
    assert "2 of 16 candidates are accepted" in made.stdout
    for line in ("below the threshold", "said before", "accepted"):
        assert line in made.stdout
    results = run_ayllu("synthesize", str(file), *scored, "--json", *url)
    prompts = [json.loads(line) for line in results.stdout.splitlines()]
    assert [len(one["k_scored_generations"]) for one in prompts] == [1, 1, 0, 0]
    shown = json.loads(run_ayllu("dataset", "show", "d", *url).stdout)
    assert shown["columns"] == {"dialog": "dialog"}
    assert "j\tsynthetic_data\techo\tcompleted\t16/16" in run_ayllu("jobs", *url).stdout
    detached = run_ayllu("synthesize", str(file), "--job", "k", "--detach", *url)
    assert (detached.returncode, detached.stdout) == (0, "k\n")
    followed = run_ayllu("logs", "-f", "k", *url)
    assert "16 of 16 candidates are accepted" in followed.stdout


@pytest.mark.requirement("synthetic-command")
@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("{}\n", [], r"p\.jsonl, line 1: Object missing required field `prompt`"),
        ("\n\n", [], r"p\.jsonl has no prompts"),
        ('{"prompt": "a"}\n', ["--threshold", "1"], "name one by --reward"),
        ('{"prompt": "a"}\n', ["--pairs"], "name it by --dataset"),
        ('{"prompt": "a"}\n', ["--candidates", "0"], r"num_candidates"),
        ('{"prompt": "a"}\n', ["--filter", "top_k", "--k", "1"], "needs a reward model"),
        ('{"prompt": "a"}\n', ["--reward", "other"], "served are exact"),
    ],
)
def test_what_is_wrong_is_said(
    up: Up, tmp_path: Path, text: str, options: list[str], said: str
) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(text)
    done = run_ayllu("synthesize", str(file), *options, "--url", up.url)
    assert done.returncode in (1, 2)  # 2 where the request itself is wrong
    assert re.search(said, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.requirement("examples-run")
def test_the_client_of_the_page_runs(up: Up, tmp_path: Path) -> None:
    [program] = [text for kind, text in blocks(PAGE) if kind == "python"]
    shown = run_block("python", program.replace(GATEWAY, up.url), tmp_path)
    assert shown == "Name a river. ['Name a river.']\nName a city. ['Name a city.']\n"


@pytest.mark.requirement("examples-run")
def test_the_page_names_what_there_is() -> None:
    named = re.findall(r"^\| `(synthetic_data_generation\.[\w.]+)`", PAGE, re.MULTILINE)
    assert set(named) == {name for name in OPERATIONS if name.startswith("synthetic_data")}
    functions = re.findall(r"^\| `(\w+)` \| (?!the draft)", PAGE, re.MULTILINE)
    assert set(functions) == set(FilteringFunction)
    fates = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\d\. (.*)$", PAGE, re.MULTILINE)))
    assert set(Fate) - set(fates) == set()
    [text] = [text for kind, text in blocks(PAGE) if kind == "toml"]
    assert convert(tomllib.loads(text), Config).synthetic_data.at_once == 8
