"""The examples of docs/protocol.md are what they claim to be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ayllu import schemas as s

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
LINES = [
    line
    for block in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)
    for line in block.strip().splitlines()
]
FRAMES: list[dict[str, Any]] = [frame for frame in map(json.loads, LINES) if "jsonrpc" in frame]


@pytest.mark.requirement("protocol-doc")
def test_calls_are_valid_requests() -> None:
    calls = [frame for frame in FRAMES if frame.get("method") in s.OPERATIONS]
    assert calls
    for call in calls:
        s.OPERATIONS[call["method"]].read(json.dumps(call["params"]))


@pytest.mark.requirement("protocol-doc")
def test_events_amount_to_the_result() -> None:
    notes = [frame["params"] for frame in FRAMES if frame.get("method") == "event"]
    events = [event for note in notes for event in note["events"]]
    assert [note["index"] for note in notes] == [0, 1]
    chunks = [s.decode(json.dumps(event), s.ChatCompletionResponseStreamChunk) for event in events]
    (result,) = [frame["result"] for frame in FRAMES if "result" in frame]
    assert s.assemble_chat(chunks) == s.decode(json.dumps(result), s.ChatCompletionResponse)


@pytest.mark.requirement("protocol-doc")
def test_errors_have_known_codes() -> None:
    errors = [frame["error"]["data"] for frame in FRAMES if "error" in frame]
    errors += [value for value in map(json.loads, LINES) if "code" in value]
    assert len(errors) == 2
    for error in errors:
        assert s.decode(json.dumps(error), s.ErrorInfo).code in s.error_codes()
