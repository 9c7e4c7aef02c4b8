"""The language of metadata filters (extension), and what it means: `matches` is the definition, an index only faster.

A filter is a JSON object with an ``op``: ``{"op": "eq", "key": "author", "value": "Ada"}``; ``and``, ``or`` and ``not``
hold others. What a test finds under its key:

- Keys are paths: ``a.b`` finds 1 in ``{"a": {"b": 1}}``. A key that itself holds a dot is found by the same path; where
  there are several ways to read a path, the longest key wins, from the outside in: in ``{"a.b": 1, "a": {"b": 2}}``
  ``a.b`` is 1. Paths go down `MAX_LEVELS` objects and never into lists.
- Values are text, numbers and truth values. ``1`` and ``1.0`` are the same number, ``1`` and ``true`` are not the same.
  Integers beyond 64 bits are compared as floating-point numbers.
- A missing key, a value of another type, null and an object make ``eq``, ``in``, ``lt`` and ``gt`` false.
- In a list, ``eq`` and ``in`` ask whether it holds such a value; ``lt`` and ``gt`` are false.
- ``lt`` and ``gt`` order numbers with numbers, and text with text by code points.
- ``ne`` is the negation of ``eq``; ``exists`` asks only whether the key is there, be its value null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TypeAlias

from msgspec import Meta

from .wire import Wire

MAX_KEY = 256
MAX_TEXT = 1024
MAX_VALUES = 1000
MAX_LEVELS = 8
MAX_DEPTH = 16
MAX_TESTS = 256
_INT64 = 1 << 63

Key = Annotated[str, Meta(min_length=1, max_length=MAX_KEY, description="A path: `a.b`.")]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Value: TypeAlias = Text | int | float | bool
Ordered: TypeAlias = Text | int | float
Scalar: TypeAlias = str | int | float | bool


class Eq(Wire, frozen=True, tag_field="op", tag="eq"):
    """The value is this one, or a list that holds it."""

    key: Key
    value: Value


class Ne(Wire, frozen=True, tag_field="op", tag="ne"):
    """The negation of `Eq`: true where the key is missing."""

    key: Key
    value: Value


class In(Wire, frozen=True, tag_field="op", tag="in"):
    """The value is one of these, or a list that holds one of them."""

    key: Key
    values: Annotated[tuple[Value, ...], Meta(max_length=MAX_VALUES)]


class Lt(Wire, frozen=True, tag_field="op", tag="lt"):
    """The value is less than this one, of the same kind."""

    key: Key
    value: Ordered


class Gt(Wire, frozen=True, tag_field="op", tag="gt"):
    """The value is greater than this one, of the same kind."""

    key: Key
    value: Ordered


class Exists(Wire, frozen=True, tag_field="op", tag="exists"):
    """The key is there, whatever its value."""

    key: Key


class And(Wire, frozen=True, tag_field="op", tag="and"):
    """All of these hold."""

    filters: Annotated[tuple[Filter, ...], Meta(min_length=1, max_length=MAX_TESTS)]

    def __post_init__(self) -> None:
        """Keep the whole small."""
        _check(self)


class Or(Wire, frozen=True, tag_field="op", tag="or"):
    """At least one of these holds."""

    filters: Annotated[tuple[Filter, ...], Meta(min_length=1, max_length=MAX_TESTS)]

    def __post_init__(self) -> None:
        """Keep the whole small."""
        _check(self)


class Not(Wire, frozen=True, tag_field="op", tag="not"):
    """This one does not hold."""

    filter: Filter

    def __post_init__(self) -> None:
        """Keep the whole small."""
        _check(self)


Test: TypeAlias = Eq | Ne | In | Lt | Gt | Exists
Filter: TypeAlias = Test | And | Or | Not


def matches(wanted: Filter, metadata: Mapping[str, Any]) -> bool:
    """Return whether a document with this metadata passes a filter."""
    match wanted:
        case And():
            return all(matches(part, metadata) for part in wanted.filters)
        case Or():
            return any(matches(part, metadata) for part in wanted.filters)
        case Not():
            return not matches(wanted.filter, metadata)
        case _:
            return _passes(wanted, metadata)


def _passes(wanted: Test, metadata: Mapping[str, Any]) -> bool:
    match wanted:
        case Exists():
            return next(_found(metadata, wanted.key, MAX_LEVELS), _MISSING) is not _MISSING
        case Eq():
            return _holds(metadata, wanted.key, (wanted.value,))
        case Ne():
            return not _holds(metadata, wanted.key, (wanted.value,))
        case In():
            return _holds(metadata, wanted.key, wanted.values)
        case Lt():
            return _ordered(metadata, wanted, lambda value, bound: value < bound)
        case _:
            return _ordered(metadata, wanted, lambda value, bound: value > bound)


def paths(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return every value that a filter can find, by its path; objects stand beside what is in them."""
    return _paths(metadata, MAX_LEVELS, MAX_KEY)


def scalars(value: object) -> Iterator[Scalar]:
    """Yield what ``eq`` compares with: a value itself, or those in a list; numbers as they are compared."""
    for item in value if isinstance(value, list | tuple) else (value,):
        if isinstance(item, bool | str):
            yield item
        elif isinstance(item, int | float):
            yield number(item)


def number(value: float) -> int | float:
    """Return a number as filters compare it: beyond 64 bits as a floating-point number."""
    if isinstance(value, float) or -_INT64 <= value < _INT64:
        return value
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


_MISSING = object()


def _found(metadata: Mapping[str, Any], path: str, levels: int) -> Iterator[Any]:
    """Yield what stands under a path, the best reading first."""
    if path in metadata:
        yield metadata[path]
    if levels == 1:
        return
    end = path.rfind(".")
    while end >= 0:
        inner = metadata.get(path[:end])
        if isinstance(inner, dict):
            yield from _found(inner, path[end + 1 :], levels - 1)
        end = path.rfind(".", 0, end)


def _paths(metadata: Mapping[str, Any], levels: int, room: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in sorted(metadata, key=len):
        if len(key) > room:
            break
        value = metadata[key]
        if isinstance(value, dict) and levels > 1 and len(key) < room:
            for path, inner in _paths(value, levels - 1, room - len(key) - 1).items():
                found[f"{key}.{path}"] = inner
        found[key] = value
    return found


def _holds(metadata: Mapping[str, Any], key: str, values: tuple[Scalar, ...]) -> bool:
    value = next(_found(metadata, key, MAX_LEVELS), None)
    return any(_same(one, other) for one in scalars(value) for other in scalars(values))


def _same(one: Scalar, other: Scalar) -> bool:
    return one == other and isinstance(one, bool) is isinstance(other, bool)


def _ordered(
    metadata: Mapping[str, Any], wanted: Lt | Gt, order: Callable[[Any, Any], bool]
) -> bool:
    value, bound = next(_found(metadata, wanted.key, MAX_LEVELS), None), wanted.value
    if isinstance(value, str) or isinstance(bound, str):
        return isinstance(value, str) and isinstance(bound, str) and order(value, bound)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return order(number(value), number(bound))


def _check(whole: And | Or | Not) -> None:
    depth, tests = _measure(whole)
    if depth > MAX_DEPTH:
        raise ValueError(f"a filter nests at most {MAX_DEPTH} deep")
    if tests > MAX_TESTS:
        raise ValueError(f"a filter has at most {MAX_TESTS} parts")


def _measure(part: Filter) -> tuple[int, int]:
    """Return how deep a filter nests, and how many parts it has."""
    if isinstance(part, And | Or):
        inner = [_measure(one) for one in part.filters]
    elif isinstance(part, Not):
        inner = [_measure(part.filter)]
    else:
        return 1, 1
    return 1 + max(depth for depth, _ in inner), 1 + sum(tests for _, tests in inner)
