"""The manifest and the tests agree: no requirement without a test, no test that names an unknown requirement."""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent.parent
MANIFESTS = sorted(Path(__file__).parent.glob("*.toml"))


def read_manifests() -> list[tuple[str, str, dict[str, Any]]]:
    """Return the file, id and entry of every requirement."""
    return [
        (path.name, id_, entry)
        for path in MANIFESTS
        for id_, entry in tomllib.loads(path.read_text(encoding="utf-8"))["ids"].items()
    ]


def marked(source: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield each id that a test file names, in a decorator, in `pytestmark` or in the marks of a parameter."""
    for node in ast.walk(ast.parse(source, name)):
        if not (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func) == "pytest.mark.requirement"
        ):
            continue
        for argument in node.args:
            if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
                raise TypeError(f"{name}:{argument.lineno}: an id of a requirement is literal text")
            yield argument.value, f"{name}:{node.lineno}"


def read_tests() -> dict[str, list[str]]:
    """Return, for every id that tests name, where they do."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if "node_modules" in path.parts:
            continue
        for id_, place in marked(path.read_text(encoding="utf-8"), str(path.relative_to(TESTS))):
            found.setdefault(id_, []).append(place)
    return found


def test_every_requirement_is_shown_by_a_test() -> None:
    shown = read_tests()
    assert [f"{file}: {id_}" for file, id_, _ in read_manifests() if id_ not in shown] == []


def test_every_named_requirement_is_in_the_manifest() -> None:
    known = {id_ for _, id_, _ in read_manifests()}
    assert {id_: places for id_, places in read_tests().items() if id_ not in known} == {}


def test_no_requirement_stands_twice() -> None:
    counts = Counter(id_ for _, id_, _ in read_manifests())
    assert [id_ for id_, count in counts.items() if count > 1] == []


@pytest.mark.parametrize(
    ("file", "id_", "entry"), [pytest.param(*row, id=row[1]) for row in read_manifests()]
)
def test_a_requirement_has_its_sentence_and_its_source(
    file: str, id_: str, entry: dict[str, Any]
) -> None:
    assert entry.keys() == {"text", "source"}, f"{file}: {id_}"
    assert all(isinstance(value, str) and value.strip() for value in entry.values())


def test_ids_are_found_wherever_they_stand() -> None:
    source = """
import pytest
pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("a", "b")]
@pytest.mark.requirement("c")
@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.requirement("d"))])
def test_it(x): ...
"""
    assert {id_ for id_, _ in marked(source, "test_x.py")} == {"a", "b", "c", "d"}


def test_an_id_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(TypeError, match=r"test_x\.py:1"):
        list(marked("@pytest.mark.requirement(NAME)\ndef test_it(): ...", "test_x.py"))
