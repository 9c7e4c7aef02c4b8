"""Journals that were recorded once are still read as they were.

Each file has a line a record, and in the end what it came to; `support.recording` recorded them.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from support.recording import FOLDER, RECORDS, Came, came_to

from ayllu.schemas import encode

FILES = sorted(FOLDER.glob("*.jsonl"))


@pytest.mark.requirement("turn-journals")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recorded_journal_is_read_as_ever(file: Path) -> None:
    *lines, last = file.read_bytes().splitlines()
    records = [RECORDS.decode(line) for line in lines]
    assert encode(came_to(records)) == encode(msgspec.json.decode(last, type=Came))
    assert [RECORDS.decode(encode(record)) for record in records] == records


@pytest.mark.requirement("turn-journals")
def test_there_are_journals_of_all_records() -> None:
    kinds = {
        msgspec.json.decode(line)["e"]
        for file in FILES
        for line in file.read_bytes().splitlines()[:-1]
    }
    assert kinds == {
        "began", "claimed", "step", "said", "resumed", "answered", "history", "ended", "retrieved",
        "attached", "check", "checked", "decided", "split", "delegated", "returned",
    }  # fmt: skip
