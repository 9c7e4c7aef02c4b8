"""Whether the arguments of a call are right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from jsonschema.exceptions import best_match
from referencing import Registry
from referencing.exceptions import Unresolvable

from ...schemas import InvalidRequest


def check_schema(schema: Mapping[str, Any], name: str) -> None:
    """Refuse what is no JSON schema.

    Raises:
        InvalidRequest: it is none; the message has the ``name`` of the tool.
    """
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InvalidRequest(
            f"the parameters of {name!r} are no JSON schema: {error.message}"
        ) from error


def problem_with(schema: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the arguments of a call, for the model to read; None if they are right."""
    # With a registry of its own nothing that a schema refers to is fetched.
    validator = Draft202012Validator(schema, registry=Registry())
    try:
        error = best_match(validator.iter_errors(arguments))
    except Unresolvable as unresolvable:
        return f"the tool's schema cannot be followed: {unresolvable}"
    if error is None:
        return None
    where = "/".join(str(part) for part in error.absolute_path)
    return f"{where}: {error.message}" if where else str(error.message)
