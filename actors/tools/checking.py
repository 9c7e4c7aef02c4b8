"""Whether the arguments of a call are right. Schemas may be anybody's, and arguments a model's: what checking costs is bounded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import re2
from jsonschema import Draft202012Validator, SchemaError, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from ...schemas import InvalidRequest

log = logging.getLogger(__name__)

MAX_STEPS = 50_000
"""How much of a schema is looked at for one call, in keywords of short values: references can make few lines many."""
MAX_DEPTH = 80
"""How many keywords stand in each other; well below what the interpreter's stack has room for, on which an answer must not
depend, and whose end the library's native parts do not survive."""
MAX_NESTING = 48
"""How deep the values of a schema stand in each other."""
MAX_UNIQUE = 1000
"""How many items of a list are compared with each other."""
MAX_TOLD = 500
"""Characters of what is wrong, which may quote the arguments."""
_VALUES = frozenset(("default", "const", "enum", "examples"))
"""The keywords whose values are no schemas."""

Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


class _TooMuch(Exception):  # noqa: N818 - it says what it is
    """To check it would take too long."""


_steps: ContextVar[int] = ContextVar("steps")
_depth: ContextVar[int] = ContextVar("depth")


def _counted(keyword: Keyword) -> Keyword:
    """Return a keyword that is looked at only so often in one check."""

    def look(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
        _spend(1 + (0 if isinstance(value, str) else _size(value)) + _size(instance) // 1000)
        depth = _depth.get() + 1
        if depth > MAX_DEPTH:
            raise _TooMuch
        _depth.set(depth)
        for error in keyword(validator, value, instance, schema) or ():
            _spend(1 + _size(instance) // 100)  # It quotes what is wrong.
            yield error
        _depth.set(depth - 1)

    return look


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | dict) else 0


def _spend(steps: int) -> None:
    left = _steps.get() - steps
    if left < 0:
        raise _TooMuch
    _steps.set(left)


def _pattern(validator: Any, value: str, instance: Any, _: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not _matches(value, instance):
        yield ValidationError(f"{instance!r} does not match {value!r}")


def _pattern_properties(
    validator: Any, value: Mapping[str, Any], instance: Any, _: Any
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, schema in value.items():
        for name, one in instance.items():
            if _matches(pattern, name):
                yield from validator.descend(one, schema, path=name, schema_path=pattern)


def _additional(
    validator: Any, value: Any, instance: Any, schema: Mapping[str, Any]
) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    more = [
        name
        for name in instance
        if name not in known and not any(_matches(pattern, name) for pattern in patterns)
    ]
    if validator.is_type(value, "object"):
        for name in more:
            yield from validator.descend(instance[name], value, path=name)
    elif not value and more:
        yield ValidationError(f"there is no argument {', '.join(map(repr, more))}")


def _unique(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "array") and len(instance) > MAX_UNIQUE:
        raise _TooMuch
    yield from Draft202012Validator.VALIDATORS["uniqueItems"](validator, value, instance, schema)


_OWN: Mapping[str, Keyword] = {
    # In time that grows with the text alone: Python's own expressions can take for ever.
    "pattern": _pattern,
    "patternProperties": _pattern_properties,
    "additionalProperties": _additional,
    "uniqueItems": _unique,
}
_extend: Any = extend  # It has no types.
_KEYWORDS: Mapping[str, Any] = Draft202012Validator.VALIDATORS
_Bounded = _extend(
    Draft202012Validator,
    {name: _counted({**_KEYWORDS, **_OWN}[name]) for name in _KEYWORDS},
)


@lru_cache(maxsize=1000)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


def _matches(pattern: str, text: str) -> bool:
    return _compiled(pattern).search(text) is not None


def check_schema(schema: Mapping[str, Any], name: str) -> None:
    """Refuse what is no JSON schema, or none by which arguments can be checked.

    Raises:
        InvalidRequest: why; the message has the ``name`` of the tool.
    """
    where = f"the parameters of {name!r}"
    if _is_deep(schema):
        raise InvalidRequest(f"{where} are nested deeper than {MAX_NESTING} levels")
    try:
        Draft202012Validator.check_schema(schema)
        keywords = dict(_keywords(schema))
    except SchemaError as error:
        raise InvalidRequest(f"{where} are no JSON schema: {error.message}") from error
    for pattern, keyword in keywords.items():
        if keyword == "unevaluatedProperties":
            raise InvalidRequest(f"{where}: unevaluatedProperties cannot be checked")
        try:
            _compiled(pattern)
        except re2.error as error:
            raise InvalidRequest(
                f"{where}: the {keyword} {pattern[:100]!r} is none of RE2, which has no look-around and no back-references"
            ) from error


class Offered(Protocol):
    """What is offered under a name, with a schema of what it takes."""

    name: str
    parameters: Mapping[str, Any]


OfferedT = TypeVar("OfferedT", bound=Offered)


def by_name(offered: Sequence[OfferedT], what: str) -> dict[str, OfferedT]:
    """Return what an actor offers by its names.

    Raises:
        InvalidRequest: two have the same name, or the parameters of one are no JSON schema; ``what`` is what they are called.
    """
    found = {one.name: one for one in offered}
    if len(found) < len(offered):
        raise InvalidRequest(f"two {what} have the same name")
    for one in offered:
        check_schema(one.parameters, one.name)
    return found


def _is_deep(value: Any) -> bool:
    """Tell whether values stand too deep in each other."""
    left = [(value, 1)]
    while left:
        one, depth = left.pop()
        if depth > MAX_NESTING:
            return True
        parts = one.values() if isinstance(one, Mapping) else one if isinstance(one, list) else ()
        left += [(part, depth + 1) for part in parts]
    return False


def _keywords(schema: Any) -> Iterator[tuple[str, str]]:
    """Yield the expressions in a schema, and the keyword that cannot be checked, each with the keyword that it stands at."""
    if isinstance(schema, list):
        for one in schema:
            yield from _keywords(one)
    if not isinstance(schema, Mapping):
        return
    for key, value in schema.items():
        if key == "pattern" and isinstance(value, str):
            yield value, key
        elif key == "patternProperties" and isinstance(value, Mapping):
            yield from ((pattern, key) for pattern in value)
        elif key == "unevaluatedProperties" and not isinstance(value, Mapping):
            yield key, key
        if key in ("properties", "$defs", "definitions") and isinstance(value, Mapping):
            for one in value.values():  # Their names are anybody's.
                yield from _keywords(one)
        elif key not in _VALUES:
            yield from _keywords(value)


def problem_with(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the arguments of a call, for the model to read; None if they are right."""
    # With a registry of its own nothing that a schema refers to is fetched.
    validator = _Bounded(schema, registry=Registry())
    _steps.set(MAX_STEPS)
    _depth.set(0)
    try:
        error = best_match(validator.iter_errors(arguments))
    except Unresolvable as unresolvable:
        return f"the tool's schema cannot be followed: {unresolvable}"
    except _TooMuch:
        return "they are too much, or nested too deep, to be checked by the tool's schema"
    except Exception:
        # References lead to what no one has checked, and the library has no bound for numbers.
        log.debug("arguments cannot be checked", exc_info=True)
        return "they cannot be checked by the tool's schema"
    if error is None:
        return None
    where = "/".join(str(part) for part in error.absolute_path)
    told = str(error.message)
    told = told if len(told) <= MAX_TOLD else f"{told[:MAX_TOLD]}..."
    return f"{where}: {told}" if where else told
