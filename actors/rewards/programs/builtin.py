"""The rewards that come along: what can be checked about an answer without judging it.

They are functions like those of operators, and run in a child as these do: neither a regular expression nor a schema's
pattern can be kept from taking for ever.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ....schemas import Dialog, InvalidRequest, Message, ToolCall, Wire
from ....schemas.wire import convert
from ...attachments import text_of
from ...tool_calls import ToolCallParser

_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d{1,100})(\.\d{1,100})?")


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
            _check_schema(self.schema, "params.schema")


class ToolCallParams(Params, frozen=True):
    """The params of ``tool_call``: none."""


BUILTINS: Mapping[str, type[Params]] = MappingProxyType(
    {"exact_answer": ExactAnswer, "json_schema": JsonSchema, "tool_call": ToolCallParams}
)
"""The functions of this module, and the types of their params."""


def exact_answer(
    dialog: Dialog,  # noqa: ARG001  (what every function gets)
    answer: Message,
    reference: Any,
    *,
    pattern: str | None = None,
) -> float:
    """Return 1 for an answer that is the reference (one of them, if it is a list), else 0.

    Case, white space, Unicode's compatible forms and a final full stop do not count; numbers are compared as numbers.

    Raises:
        InvalidRequest: there is nothing to compare with, or an attachment cannot be read.
    """
    text = _text(answer)
    if pattern is not None:
        found = list(re.finditer(pattern, text))
        if not found or found[-1][1] is None:
            return 0.0
        text = found[-1][1]
    wanted = reference if isinstance(reference, list) else [reference]
    if not wanted or not all(isinstance(one, str | int | float) for one in wanted):
        raise InvalidRequest("reference: it must be a text, a number, or a list of these")
    return float(any(_normal(text) == _normal(str(one)) for one in wanted))


def json_schema(
    dialog: Dialog,  # noqa: ARG001
    answer: Message,
    reference: Any,
    *,
    schema: dict[str, Any] | None = None,
) -> float:
    """Return 1 for an answer that is JSON, and nothing else, and fits the schema; else 0.

    Raises:
        InvalidRequest: there is no schema.
    """
    wanted = schema
    if wanted is None:
        _check_schema(reference, "reference")
        wanted = reference
    try:
        value = msgspec.json.decode(_text(answer))
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return 0.0
    return float(_fits(value, wanted))


def tool_call(dialog: Dialog, answer: Message, reference: Any) -> float:  # noqa: ARG001
    """Return 1 for an answer that is one tool call and nothing else, that of the reference if there is one; else 0.

    The call stands in the message's ``tool_calls``, or in its text as models write it.

    Raises:
        InvalidRequest: the reference is no tool call.
    """
    wanted = None if reference is None else convert(reference, ToolCall)
    parser = ToolCallParser()
    pieces = [*answer.tool_calls, *parser.feed(_text(answer)), *parser.finish()]
    found = [piece for piece in pieces if isinstance(piece, ToolCall) or piece.strip()]
    if len(found) != 1 or not isinstance(found[0], ToolCall):
        return 0.0
    if wanted is None:
        return 1.0
    same = found[0].tool_name == wanted.tool_name
    # As JSON: 1 and 1.0 are one number, and true is none.
    return float(same and _fits(found[0].arguments, {"const": wanted.arguments}))


def _text(answer: Message) -> str:
    return text_of(answer.content, model="program", where="the answer")


def _normal(text: str) -> str | Decimal:
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).removesuffix(".")
    return Decimal(plain.replace(",", "")) if _NUMBER.fullmatch(plain) else plain


def _check_schema(schema: Any, where: str) -> None:
    from jsonschema import Draft202012Validator, SchemaError

    if not isinstance(schema, dict):
        raise InvalidRequest(f"{where} is no JSON schema")
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise InvalidRequest(f"{where} is no JSON schema: {error.message}") from error


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    try:
        # With a registry of its own nothing that a schema refers to is fetched.
        return Draft202012Validator(schema, registry=Registry()).is_valid(value)
    except Unresolvable as error:
        raise InvalidRequest(f"the schema cannot be followed: {error}") from error
    except RecursionError:
        return False
