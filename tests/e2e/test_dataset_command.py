"""`ayllu dataset`, as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import Up, run_ayllu, running_up

pytestmark = [pytest.mark.slow, pytest.mark.requirement("dataset-command")]

CONFIG = """
[[models]]
name = "echo"
engine = "scripted"
source = "echo"

[datasets]
roots = [{root!r}]
"""
GOOD = [{"prompt": f"{n}?", "completion": f"{n}!", "weight": n} for n in range(3)]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "roots").mkdir()
    config = CONFIG.format(root=str(folder / "roots"))
    with running_up(folder / "data", config=config) as running:
        yield running
        assert running.stop() == 0


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_dataset_is_created_listed_shown_and_forgotten(up: Up, tmp_path: Path) -> None:
    url = ["--url", up.url]
    file = write(tmp_path / "good.jsonl", GOOD)
    made = run_ayllu("dataset", "create", "good", file, *url)
    assert (made.returncode, made.stdout) == (0, "good\n"), made.stderr
    assert "prompt (text), completion (text), weight (number)" in made.stderr
    assert run_ayllu("dataset", "create", "good", file, *url).returncode == 0  # The same again.
    listed = run_ayllu("dataset", "list", *url)
    assert listed.stdout.startswith("good\t3 rows\t")
    info = json.loads(run_ayllu("dataset", "list", "--json", *url).stdout)
    shown = json.loads(run_ayllu("dataset", "show", "good", *url).stdout)
    assert info["dataset"] == shown
    assert shown["fingerprint"].startswith("sha256:")
    other = write(tmp_path / "other.jsonl", GOOD[:1])
    conflict = run_ayllu("dataset", "create", "good", other, *url)
    assert (conflict.returncode, "already" in conflict.stderr) == (1, True)
    assert run_ayllu("dataset", "delete", "good", *url).returncode == 0
    gone = run_ayllu("dataset", "show", "good", *url)
    assert (gone.returncode, "good" in gone.stderr) == (1, True)


def test_a_large_file_is_read_where_the_server_may_read_it(up: Up, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": "x" * 1000} for _ in range(500)]
    roots = up.data_dir.parent / "roots"
    inside = write(roots / "large.jsonl", rows)
    outside = write(tmp_path / "large.jsonl", rows)
    made = run_ayllu("dataset", "create", "large", inside, "--url", up.url)
    assert made.returncode == 0, made.stderr
    refused = run_ayllu("dataset", "create", "outside", outside, "--url", up.url)
    assert (refused.returncode, "roots" in refused.stderr) == (1, True)


def test_bad_rows_are_named_with_and_without_a_gateway(up: Up, tmp_path: Path) -> None:
    file = write(tmp_path / "bad.jsonl", [*GOOD, {"prompt": 1, "completion": "a", "weight": "b"}])
    columns = ["--columns", "prompt=text", "completion=text", "weight=number"]
    checked = run_ayllu("dataset", "check", file, *columns)
    assert checked.returncode == 2
    assert "row 4" in checked.stdout
    created = run_ayllu("dataset", "create", "bad", file, *columns, "--url", up.url)
    assert (created.returncode, "row 4" in created.stderr) == (2, True)
    fine = run_ayllu("dataset", "check", write(tmp_path / "good.jsonl", GOOD))
    assert (fine.returncode, fine.stdout) == (0, "3 rows, all as declared\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "no-such-file.jsonl"], "no file"),
        (["check", "https://example.com/x.jsonl"], "create"),
        (["create", "x", "no-such-file.csv"], "no file"),
        (["create", "x", "https://example.com/x.csv"], "--columns"),
        (["create", "x", __file__], "format"),
        (["check", "x.jsonl", "--columns", "a"], "NAME=TYPE"),
    ],
)
def test_what_is_wrong_is_said_before_any_gateway_is_asked(arguments: list[str], said: str) -> None:
    done = run_ayllu("dataset", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_help_teaches() -> None:
    for action in ("create", "list", "show", "delete", "check"):
        done = run_ayllu("dataset", action, "--help")
        assert "example:" in done.stdout
