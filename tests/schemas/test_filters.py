"""What filters mean, by examples; that an index finds the same is tested with the memory banks."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ayllu.schemas.filters import MAX_DEPTH, MAX_LEVELS, MAX_TESTS, Filter, matches, number, paths

METADATA = {
    "author": "Ada",
    "year": 1843,
    "huge": 1 << 80,
    "draft": False,
    "tags": ["engine", 1, True],
    "place": {"town": {"name": "London"}, "zip": None},
    "a.b": 1,
    "a": {"b": 2, "c": 3},
}


def passes(wanted: dict[str, Any]) -> bool:
    return matches(msgspec.convert(wanted, Filter), METADATA)


def ask(op: str, key: str, **rest: Any) -> bool:
    return passes({"op": op, "key": key, **rest})


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("author", "Ada", True),
        ("author", "ada", False),
        ("year", 1843.0, True),
        ("huge", float(1 << 80), True),
        ("draft", False, True),
        ("draft", 0, False),
        ("tags", "engine", True),
        ("tags", True, True),
        ("tags", "other", False),
        ("place.town.name", "London", True),
        ("place.town", "London", False),
        ("place.zip", "", False),
        ("a.b", 1, True),
        ("a.b", 2, False),
        ("a.c", 3, True),
        ("author.x", "Ada", False),
        ("missing", 1, False),
    ],
)
def test_a_value_is_compared_with_what_stands_under_a_path(
    key: str, value: Any, found: bool
) -> None:
    assert ask("eq", key, value=value) is found
    assert ask("ne", key, value=value) is not found
    assert ask("in", key, values=["nothing", value]) is found


@pytest.mark.parametrize(
    ("key", "bound", "less", "greater"),
    [
        ("year", 1900, True, False),
        ("year", 1800.5, False, True),
        ("year", "1900", False, False),
        ("author", "Bob", True, False),
        ("author", "", False, True),
        ("author", 1, False, False),
        ("draft", 1, False, False),
        ("tags", 5, False, False),
        ("missing", 5, False, False),
        ("huge", 10**400, True, False),
        ("huge", -(10**400), False, True),
    ],
)
def test_numbers_are_ordered_with_numbers_and_text_with_text(
    key: str, bound: Any, less: bool, greater: bool
) -> None:
    wanted = {"op": "lt", "key": key, "value": bound}
    if isinstance(bound, int) and abs(bound) > 1 << 64:
        bound = number(bound)  # JSON brings it as a floating-point number.
        wanted["value"] = bound
    assert passes(wanted) is less
    assert ask("gt", key, value=bound) is greater


def test_a_key_exists_even_with_null() -> None:
    assert ask("exists", "place.zip")
    assert not ask("exists", "place.street")
    assert ask("exists", "place.town")


def test_filters_are_combined() -> None:
    ada, bob = ({"op": "eq", "key": "author", "value": name} for name in ("Ada", "Bob"))
    assert passes({"op": "or", "filters": [ada, bob]})
    assert not passes({"op": "and", "filters": [ada, bob]})
    assert passes({"op": "not", "filter": bob})


def test_a_filter_is_small() -> None:
    nested: dict[str, Any] = {"op": "exists", "key": "a"}
    for _ in range(MAX_DEPTH):
        nested = {"op": "not", "filter": nested}
    with pytest.raises(msgspec.ValidationError, match="deep"):
        passes(nested)
    half = {"op": "or", "filters": [{"op": "exists", "key": "a"}] * (MAX_TESTS // 2)}
    with pytest.raises(msgspec.ValidationError, match="parts"):
        passes({"op": "and", "filters": [half, half]})


def test_paths_go_down_some_levels_and_are_short() -> None:
    assert paths({"a": {"b": 1}, "x" * 300: 2}) == {"a": {"b": 1}, "a.b": 1}
    deep: Any = 1
    for _ in range(MAX_LEVELS + 1):
        deep = {"k": deep}
    key = ".".join("k" * MAX_LEVELS)
    assert max(paths(deep), key=len) == key
    wanted = msgspec.convert({"op": "exists", "key": f"{key}.k"}, Filter)
    assert not matches(wanted, deep)


def test_numbers_beyond_64_bits_are_floating_point() -> None:
    assert number(1 << 70) == 2.0**70
    assert isinstance(number(1 << 70), float)
    assert number(10**400) == float("inf")
    assert number(-(10**400)) == float("-inf")
