"""What the rewards that come along are configured with, ``params``; reading it needs nothing that runs them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from msgspec import Meta

from ....schemas import InvalidRequest, Wire

MAX_TESTS = 100


class Params(Wire, frozen=True):
    """What a function of ours gets beside answers."""

    def check(self) -> None:
        """Refuse what types cannot tell.

        Raises:
            InvalidRequest: a value is wrong; the message names it.
        """


class ExactAnswer(Params, frozen=True):
    """The params of ``exact_answer``.

    Attributes:
        pattern: a regular expression with one group, which is the answer in the text; its last match counts.
    """

    pattern: Annotated[str, Meta(min_length=1)] | None = None

    def check(self) -> None:
        """Refuse a pattern that is none, or has not one group."""
        if self.pattern is None:
            return
        try:
            groups = re.compile(self.pattern).groups
        except (re.error, RecursionError, OverflowError) as error:
            raise InvalidRequest(f"params.pattern is no regular expression: {error}") from error
        if groups != 1:
            raise InvalidRequest(f"params.pattern has {groups} groups, not one")


class JsonSchema(Params, frozen=True):
    """The params of ``json_schema``.

    Attributes:
        schema: what answers shall fit; without one, each prompt's reference is its schema.
    """

    schema: dict[str, Any] | None = None

    def check(self) -> None:
        """Refuse a schema that is none."""
        if self.schema is not None:
            check_schema(self.schema, "params.schema")


class ToolCallParams(Params, frozen=True):
    """The params of ``tool_call``: none."""


class CodeTest(Wire, frozen=True):
    """What a program shall write when it reads something: white space at the ends of its lines does not count."""

    stdout: str
    stdin: str = ""


Tests = Annotated[list[str | CodeTest], Meta(min_length=1, max_length=MAX_TESTS)]


class CodeTestsParams(Params, frozen=True):
    """The params of ``code_tests``.

    Attributes:
        tests: Python code with assertions about the names that the answer defines, or what it reads and writes; without
            any, each prompt's reference has them.
        all_or_nothing: whether the score is 1 for an answer that passes all tests, and 0 for any other; else it is the share
            that it passes.
    """

    tests: Tests | None = None
    all_or_nothing: bool = False


PARAMS: Mapping[str, type[Params]] = MappingProxyType(
    {
        "exact_answer": ExactAnswer,
        "json_schema": JsonSchema,
        "tool_call": ToolCallParams,
        "code_tests": CodeTestsParams,
    }
)
"""The functions that come along, and the types of their params."""


def check_schema(schema: Any, where: str) -> None:
    """Refuse a JSON schema that is none.

    Raises:
        InvalidRequest: it is none; the message begins with ``where``.
    """
    from jsonschema import Draft202012Validator, SchemaError

    if not isinstance(schema, dict):
        raise InvalidRequest(f"{where} is no JSON schema")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InvalidRequest(f"{where} is no JSON schema: {error.message}") from error
