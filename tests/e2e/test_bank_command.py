"""`ayllu bank`, as its users run it: against one deployment with its default embedding model."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.processes import AYLLU, Up, on_a_terminal, run_ayllu, running_up, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.requirement("bank-command")]

ACTIONS = ["list", "create", "insert", "query", "stats", "export", "import", "drop"]
GATEWAY = "The gateway is restarted by sending it SIGTERM and starting it again.\n"
PERU = "Lima is the capital of Peru.\n"


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One deployment for all tests of this file: each uses banks of its own."""
    with running_up(tmp_path_factory.mktemp("bank")) as running:
        Command(running.url).said("create", "b")
        yield running
        assert running.stop() == 0


class Command:
    """`ayllu bank` with the address of the gateway."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(
        self, action: str, *arguments: object, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        done = run_ayllu("bank", action, "--url", self.url, *words, stdin=stdin)
        assert "Traceback" not in done.stderr
        return done

    def said(self, action: str, *arguments: object, stdin: str = "") -> str:
        """Return what a command that ends well writes to stdout."""
        done = self(action, *arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def documents(self, bank: str) -> dict[str, Any]:
        """Return all documents of a bank, as export writes them."""
        lines = [json.loads(line) for line in self.said("export", bank).splitlines()]
        return {line["uuid"]: line for line in lines}


@pytest.fixture
def bank(up: Up) -> Command:
    return Command(up.url)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder with two documents, and much that is none."""
    folder = tmp_path / "notes"
    for path, content in {
        "gateway.md": GATEWAY.encode(),
        "countries/peru.txt": PERU.encode(),
        "empty.txt": b"",
        ".hidden.txt": b"hidden",
        ".git/config": b"hidden",
        "picture.png": b"\x89PNG\r\n",
        "archive.txt.gz": b"\x1f\x8b",
        "unknown": b"\0\1\2",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def test_help_teaches() -> None:
    whole = run_ayllu("bank", "--help").stdout
    for action in ACTIONS:
        assert f"ayllu bank {action}" in whole
        done = run_ayllu("bank", action, "--help")
        assert done.returncode == 0
        assert f"ayllu bank {action}" in done.stdout.partition("example:")[2]


def test_a_bank_of_a_folder(bank: Command, notes: Path) -> None:
    done = bank("create", "folder", notes, "--name", "My notes")
    assert done.returncode == 0
    assert done.stdout == ""
    left_out, told = done.stderr.splitlines()
    assert "2 hidden" in left_out
    assert "1 empty (empty.txt)" in left_out
    assert "3 of kinds that no bank takes (archive.txt.gz, picture.png, unknown)" in left_out
    assert told == "folder: 2 inserted"
    assert "folder\tMy notes\n" in bank.said("list")
    documents = bank.documents("folder")
    assert list(documents) == ["countries/peru.txt", "gateway.md"]
    assert documents["gateway.md"]["mime_type"] == "text/markdown"
    assert documents["gateway.md"]["metadata"] == {"path": "gateway.md"}
    assert bank.said("drop", "folder") == ""
    assert "folder" not in bank.said("list")


def test_what_is_text_by_its_content(bank: Command, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    texts = {"main.rs": "fn main() {}", "Makefile": "all:", "a.yaml": "a: ä", "b.py": "x = 1"}
    for name, text in texts.items():
        (folder / name).write_text(text)
    bank.said("create", "source", folder)
    assert {uuid: one["mime_type"] for uuid, one in bank.documents("source").items()} == {
        "main.rs": "text/plain",
        "Makefile": "text/plain",
        "a.yaml": "text/plain",
        "b.py": "text/x-python",
    }


def test_insert_and_replace(bank: Command, notes: Path) -> None:
    bank.said("create", "replaced")
    assert bank("insert", "replaced", notes).stderr.endswith("replaced: 2 inserted\n")
    again = bank("insert", "replaced", notes)
    assert again.returncode == 1
    assert "'countries/peru.txt', 'gateway.md'" in again.stderr
    assert "--replace" in again.stderr
    (notes / "gateway.md").write_text("other words\n")
    (notes / "new.md").write_text("new words\n")
    done = bank("insert", "replaced", notes, "--replace")
    assert done.returncode == 0
    assert done.stderr.endswith("replaced: 1 inserted, 2 replaced\n")
    assert [match["chunk"] for match in matches(bank, "replaced", "other", "-k", "1")] == [
        "other words"
    ]
    assert len(bank.documents("replaced")) == 3


def test_replace_in_several_batches(bank: Command, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(150):
        (folder / f"{number}.txt").write_text(f"document {number}")
    bank.said("create", "many", folder / "7.txt", folder / "77.txt")
    done = bank("insert", "many", folder, "--replace")
    assert done.stderr.endswith("many: 148 inserted, 2 replaced\n")
    assert len(bank.documents("many")) == 150


def matches(bank: Command, name: str, *arguments: str) -> list[dict[str, Any]]:
    [line] = bank.said("query", name, *arguments, "--json").splitlines()
    found: list[dict[str, Any]] = json.loads(line)["matches"]
    return found


def test_queries(bank: Command, notes: Path) -> None:
    bank.said("create", "asked", notes)
    first, text = bank.said("query", "asked", "Which city governs Peru?", "-k", "1").splitlines()
    assert first.split()[1:] == ["countries/peru.txt"]
    assert text.strip() == PERU.strip()
    wanted = json.dumps({"op": "eq", "key": "path", "value": "gateway.md"})
    for options in ([], ["Peru"], ["Peru", "--mode", "vector"]):
        found = matches(bank, "asked", *options, "--filter", wanted)
        assert [match["document_uuid"] for match in found] == ["gateway.md"]
    [line] = bank.said("query", "asked", "--filter", wanted, "--json").splitlines()
    assert [one["uuid"] for one in json.loads(line)["documents"]] == ["gateway.md"]
    nothing = bank("query", "asked", "unheard", "--mode", "text")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "nothing was found" in nothing.stderr
    assert matches(bank, "asked", "Peru", "--mode", "vector", "--min-score", "1.1") == []


def test_stats(bank: Command, notes: Path) -> None:
    bank.said("create", "counted", notes, "--chunk-size", "50", "--chunk-overlap", "5")
    stats = dict(line.split(None, 1) for line in bank.said("stats", "counted").splitlines())
    assert stats["documents"] == stats["chunks"] == "2"
    assert stats["embedding_model"] == "all-minilm-l6-v2"
    assert (stats["chunk_size"], stats["chunk_overlap"]) == ("50", "5")


def test_export_and_import(bank: Command, notes: Path, tmp_path: Path) -> None:
    bank.said("create", "original", notes)
    exported = bank.said("export", "original")
    done = bank("import", "from-stdin", "-", "--name", "Copy", "--chunk-size", "9", stdin=exported)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "from-stdin: 2 inserted\n"
    file = tmp_path / "exported.jsonl"
    file.write_text(f"\n{exported}\n")
    bank.said("import", "from-file", file)
    for name in ("from-stdin", "from-file"):
        assert bank.said("export", name) == exported
        found = matches(bank, name, "capital of Peru", "-k", "1")
        assert found[0]["document_uuid"] == "countries/peru.txt"
    assert "from-stdin\tCopy\n" in bank.said("list")
    assert "chunk_size       9\n" in bank.said("stats", "from-stdin")


def test_more_documents_than_a_call_and_a_page_take(bank: Command, tmp_path: Path) -> None:
    lines = [
        json.dumps(
            {
                "uuid": f"{n:04}",
                "content": "eA==",
                "metadata": {"n": n},
                "mime_type": "text/plain",
            }
        )
        for n in range(250)
    ]
    bank.said("import", "many-lines", "-", stdin="\n".join(lines))
    assert list(bank.documents("many-lines")) == [f"{n:04}" for n in range(250)]


@pytest.mark.parametrize("place", range(3))
def test_options_stand_anywhere(bank: Command, notes: Path, place: int) -> None:
    name = f"order-{place}"
    arguments = [[name], [str(notes)]]
    arguments.insert(place, ["--chunk-size", "77"])
    bank.said("create", *(word for words in arguments for word in words))
    assert "chunk_size       77\n" in bank.said("stats", name)
    arguments = [[name], ["Peru"]]
    arguments.insert(place, ["--mode", "text"])
    found = bank.said("query", *(word for words in arguments for word in words))
    assert "countries/peru.txt" in found


def test_ctrl_c_ends_an_import_that_waits_for_its_input(bank: Command) -> None:
    with subprocess.Popen(
        [AYLLU, "bank", "import", "interrupted", "-", "--url", bank.url], stdin=subprocess.PIPE
    ) as importing:
        wait_for("the bank", lambda: "interrupted" in bank.said("list"))
        importing.send_signal(signal.SIGINT)
        assert importing.wait(5) == 130


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["query", "unknown", "words"], 1, "no memory bank 'unknown'"),
        (["insert", "unknown", __file__], 1, "no memory bank 'unknown'"),
        (["insert", "unknown", __file__, "--replace"], 1, "no memory bank 'unknown'"),
        (["export", "unknown"], 1, "no memory bank 'unknown'"),
        (["stats", "unknown"], 1, "no memory bank 'unknown'"),
        (["drop", "unknown"], 1, "no memory bank 'unknown'"),
        (["create", "b"], 1, "already"),
        (["create", "c", "--embedding-model", "nothing"], 1, "all-minilm-l6-v2"),
        (["create", "c", "--chunk-size", "1000"], 2, "chunk_size"),
        (["create", "c", "/no/such/path"], 2, "/no/such/path"),
        (["import", "c", "/no/such/file"], 2, "cannot be read"),
        (["query", "b", "--filter", "{"], 2, "--filter: malformed"),
        (["query", "b", "--filter", '{"op": "equals"}'], 2, "$.filter.op"),
        (["query", "b", "--filter", '{"op": "eq", "key": "a"}'], 2, "`value`"),
        (["query", "b", "x", "--mode", "metadata"], 2, "metadata takes no"),
        (["query", "b", "x", "-k", "0"], 2, "$.k"),
        (["query"], 2, "BANK"),
    ],
)
def test_errors_say_what_is_wrong(
    bank: Command, arguments: list[str], status: int, says: str
) -> None:
    done = bank(*arguments)
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert done.stdout == ""


def test_two_files_of_one_name(bank: Command, notes: Path, tmp_path: Path) -> None:
    other = tmp_path / "gateway.md"
    other.write_text("x")
    done = bank("create", "twice", notes, other)
    assert done.returncode == 2
    assert str(other) in done.stderr
    assert "twice" not in bank.said("list")


def test_a_file_of_a_kind_that_no_bank_takes(bank: Command, notes: Path) -> None:
    done = bank("create", "kinds", notes / "picture.png")
    assert done.returncode == 2
    assert "picture.png is image/png" in done.stderr


def test_files_that_are_refused_do_not_stop_the_others(bank: Command, notes: Path) -> None:
    (notes / "large.txt").write_text("long " * 200_000)
    (notes / "latin.txt").write_bytes("grün".encode("latin-1"))
    (notes / "blank.txt").write_text(" \n")
    for name in ("x" * 161, "ü" * 90):
        (notes / name).write_text("a long name")
    done = bank("create", "refused", notes)
    assert done.returncode == 2
    refused = done.stderr.splitlines()[1:]
    assert refused[-1] == "ayllu bank: 5 documents were refused"
    assert refused[-2] == "refused: 2 inserted"
    [large] = [line for line in refused if line.startswith("large.txt: ")]
    assert "1048576 bytes" in large
    assert "split it, or raise gateway.max_message_bytes" in large
    reasons = {"latin.txt": "charset utf-8", "blank.txt": "no text", "xxx": "160", "ü": "too long"}
    for name, says in reasons.items():
        [line] = [line for line in refused if name in line]
        assert says in line
    assert list(bank.documents("refused")) == ["countries/peru.txt", "gateway.md"]


def test_a_wrong_line_is_named_and_nothing_is_made_of_its_file(
    bank: Command, tmp_path: Path
) -> None:
    right = '{"uuid":"a","content":"eA==","metadata":{},"mime_type":"text/plain"}\n'
    file = tmp_path / "wrong.jsonl"
    file.write_text(f"{right}\n{right.replace('content', 'contents')}")
    done = bank("import", "wrong", file)
    assert done.returncode == 2
    assert "line 3: " in done.stderr
    assert "contents" in done.stderr
    assert "wrong" not in bank.said("list")


def test_a_bar_on_a_terminal_and_none_in_a_pipe(bank: Command, notes: Path) -> None:
    url = ["--url", bank.url]
    stdout, seen = on_a_terminal([AYLLU, "bank", "create", "shown", str(notes), *url])
    assert "2/2" in seen
    assert "shown: 2 inserted" in seen
    assert stdout == ""
    stdout, seen = on_a_terminal([AYLLU, "bank", "export", "shown", *url])
    assert "2/2" in seen
    assert "peru.txt" not in seen
    assert stdout == bank.said("export", "shown")
    done = bank("export", "shown")
    assert done.stderr == ""


def test_a_reader_that_has_seen_enough(bank: Command, notes: Path) -> None:
    bank.said("create", "piped", notes)
    command = f"'{AYLLU}' bank export piped --url {bank.url} | head -c 1"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "{", "")
