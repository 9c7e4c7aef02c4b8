"""The rewards that come along: what can be checked about an answer without judging it.

They are functions like those of operators, and run in a child as these do: neither a regular expression nor a schema's
pattern can be kept from taking for ever.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from typing import Any

import msgspec

from ....schemas import Dialog, InvalidRequest, Message, ToolCall
from ....schemas.wire import convert
from ...attachments import text_of
from ...tool_calls import ToolCallParser
from .params import check_schema

_NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d{1,100})(\.\d{1,100})?")


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
    known = [_normal(form) for one in wanted for form in _forms(one)]
    return float(_normal(text) in known)


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
        check_schema(reference, "reference")
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


def _forms(reference: str | float) -> list[str]:
    """Return how an answer may have a reference; Python writes small and large numbers with exponents."""
    if isinstance(reference, float):
        return [repr(reference), format(Decimal(repr(reference)), "f")]
    return [str(reference)]


def _normal(text: str) -> str | Decimal:
    plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).removesuffix(".")
    return Decimal(plain.replace(",", "")) if _NUMBER.fullmatch(plain) else plain


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
