"""What docs/observing.md shows is what happens: its examples are run in order, on the real model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.pages import blocks, page, run_block
from support.processes import running_up

from ayllu.actors.agents.streams import JOURNAL
from ayllu.runtime.top import MOST_ROWS
from ayllu.runtime.top_turns import MOST_TURNS
from ayllu.runtime.trace_view import HEAD
from ayllu.schemas import OPERATIONS
from ayllu.schemas.delegation import MAX_DEPTH
from ayllu.schemas.tracing import MAX_TRACED

pytestmark = pytest.mark.requirement("examples-run")

PAGE = page("observing.md")
BLOCKS = blocks(PAGE)


@pytest.mark.slow
def test_the_examples_in_their_order(tmp_path: Path) -> None:
    said: list[str] = []
    with running_up(tmp_path / "data", config=None) as up:
        environment = {"AYLLU_BUS_URL": up.bus_url}
        for source in (text for kind, text in BLOCKS if kind == "sh"):
            at_up = re.sub(
                r"ayllu (agents|turns|chat|trace|graph)", rf"ayllu \1 --url {up.url}", source
            )
            said.append(run_block("sh", at_up, tmp_path, environment))
        assert up.stop() == 0
    _, trace, graph, top = said
    shown = dict(zip(("trace", "top"), (text for kind, text in BLOCKS if not kind), strict=True))
    assert tree(trace) == tree(shown["trace"])
    assert graph == next(text for kind, text in BLOCKS if kind == "mermaid")
    heads = [
        line.split()
        for line in shown["top"].splitlines()
        if re.match("(service|model|agent|stream) ", line)
    ]
    assert [line.split() for line in top.splitlines() if line.split() in heads] == heads


def tree(text: str) -> list[str]:
    """Return the tree of a trace, without times and ids."""
    head, *lines = text.splitlines()
    assert head == HEAD.rstrip()
    return [re.sub(r" / [0-9a-f-]+|, waited .*", "", line[len(HEAD) :]).rstrip() for line in lines]


def test_the_operation_and_the_bounds() -> None:
    [(name, verb, route)] = re.findall(r"^\| `([\w.]+)` \| `(\w+) (/[\w/]+)", PAGE, re.MULTILINE)
    assert (OPERATIONS[name].verb, OPERATIONS[name].route) == (verb, route)
    assert f"at most {MAX_TRACED} turns" in PAGE
    assert f"in {MAX_DEPTH} levels" in PAGE
    assert f"at most {MOST_TURNS} (" in PAGE
    assert f"a part has at most {MOST_ROWS} rows" in PAGE
    assert f"({JOURNAL.max_age / 86_400:.0f} days)" in PAGE
