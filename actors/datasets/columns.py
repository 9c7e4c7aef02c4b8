"""What columns are declared to hold, checked against what they hold."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from ...schemas import URL, Attachment, DatasetColumnType, InvalidRequest
from ...schemas.wire import convert, encode
from .dialogs import messages_of
from .formats import BrokenRow, Row, rows

REPORTED = 10
"""How many bad rows are told."""
SHOWN = 300
"""How many characters are told of one."""
TICK_ROWS = 256
"""After how many rows ``tick`` is called."""
NAMED = 3

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class BadRow(msgspec.Struct, frozen=True):
    """A row that is not as its columns are declared.

    Attributes:
        number: which one, from 1; a CSV file's first line is not counted.
        message: what is wrong with it.
    """

    number: int
    message: str


class RowReport(msgspec.Struct, frozen=True):
    """What was found in a content.

    Attributes:
        rows: how many rows there are.
        bad: the first ones that are bad.
        wrong: how many are bad in all.
    """

    rows: int
    bad: list[BadRow]
    wrong: int


def check_rows(
    path: Path,
    format: str,
    columns: Mapping[str, DatasetColumnType],
    most: int = REPORTED,
    tick: Callable[[], object] = lambda: None,
) -> RowReport:
    """Check all rows of a file.

    Args:
        path: the file.
        format: one of `ayllu.actors.datasets.formats.FORMATS`.
        columns: what is declared; others may be there.
        most: how many bad rows are told.
        tick: called now and then; what it raises ends the check.

    Raises:
        InvalidRequest: the file as a whole is not of this format.
    """
    bad: list[BadRow] = []
    number = wrong = 0
    for number, row in rows(path, format):
        if number % TICK_ROWS == 0:
            tick()
        try:
            typed(row, columns, format)
        except InvalidRequest as error:
            wrong += 1
            if len(bad) < most:
                bad.append(BadRow(number, error.message[:SHOWN]))
    return RowReport(rows=number, bad=bad, wrong=wrong)


def require_rows(
    path: Path,
    format: str,
    columns: Mapping[str, DatasetColumnType],
    tick: Callable[[], object] = lambda: None,
) -> int:
    """Return how many rows a file has; they are as declared.

    Raises:
        InvalidRequest: there are none, or some are bad; the details have the first ones, by number.
    """
    require_columns(columns)
    report = check_rows(path, format, columns, tick=tick)
    if not report.rows:
        raise InvalidRequest("the dataset is empty: it has no rows")
    if report.wrong:
        first = "; ".join(f"row {bad.number}: {bad.message}" for bad in report.bad[:NAMED])
        raise InvalidRequest(
            f"{report.wrong} of {report.rows} rows are not as declared: {first}",
            details={
                "rows": report.rows,
                "wrong": report.wrong,
                "bad": msgspec.to_builtins(report.bad),
            },
        )
    return report.rows


def require_columns(columns: Mapping[str, DatasetColumnType]) -> None:
    """Refuse a dataset that declares nothing."""
    if not columns:
        raise InvalidRequest("columns: declare at least one")
    if "" in columns:
        raise InvalidRequest("columns: a name is empty")


def typed(row: Row | BrokenRow, columns: Mapping[str, DatasetColumnType], format: str) -> Row:
    """Return the declared columns of a row, their values as Python has them; in CSV, all of them are text.

    Raises:
        InvalidRequest: one is missing, or does not hold what it is declared to.
    """
    if isinstance(row, BrokenRow):
        raise InvalidRequest(row.message)
    return {name: _value_of(name, row, type_, format == "csv") for name, type_ in columns.items()}


def _value_of(name: str, row: Row, type_: DatasetColumnType, is_text: bool) -> Any:
    if name not in row:
        there = ", ".join(map(repr, list(row)[:20])) or "none"
        raise InvalidRequest(f"the column {name!r} is missing; there are {there}")
    value = row[name]
    try:
        if is_text and type_ in _IN_TEXT:
            value = _IN_TEXT[type_](value)
        if value is None and type_ is not DatasetColumnType.json:
            raise InvalidRequest("it is null")
        _CHECKS[type_](value)
    except InvalidRequest as error:
        raise InvalidRequest(f"the column {name!r} is no {type_.value}: {error.message}") from error
    return value


def _check_text(value: object) -> None:
    if not isinstance(value, str):
        raise InvalidRequest(f"it is {_kind(value)}")


def _check_number(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise InvalidRequest(f"it is {_kind(value)}")
    if not isinstance(value, int) and not math.isfinite(value):
        raise InvalidRequest(f"it is {value}")


def _check_media(value: object) -> None:
    """Media are referred to by their addresses."""
    if isinstance(value, str):
        convert(value, URL)
    elif isinstance(value, dict):
        convert(value, Attachment)
    else:
        raise InvalidRequest(f"it is {_kind(value)}")


def _check_json(value: object) -> None:
    try:
        encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"it is {_kind(value)}: {error}") from error


_CHECKS: Mapping[DatasetColumnType, Callable[[Any], object]] = {
    DatasetColumnType.text: _check_text,
    DatasetColumnType.number: _check_number,
    DatasetColumnType.media: _check_media,
    DatasetColumnType.json: _check_json,
    DatasetColumnType.dialog: messages_of,
}


def _number_in(text: str) -> int | float:
    if not _NUMBER.fullmatch(text.strip()):
        raise InvalidRequest(f"it is {text[:40]!r}")
    return float(text)


def _json_in(text: str) -> object:
    try:
        value: object = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest("it is not JSON") from error
    return value


def _media_in(text: str) -> object:
    return _json_in(text) if text.startswith("{") else text


_IN_TEXT: Mapping[DatasetColumnType, Callable[[str], object]] = {
    DatasetColumnType.number: _number_in,
    DatasetColumnType.media: _media_in,
    DatasetColumnType.json: _json_in,
    DatasetColumnType.dialog: _json_in,
}


def _kind(value: object) -> str:
    """Return what a value is, in the words of JSON."""
    for kind, name in _KINDS.items():
        if isinstance(value, kind):
            return name
    return f"a {type(value).__name__}"


_KINDS: Mapping[type, str] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    Decimal: "a number",
    str: "a text",
    list: "an array",
    dict: "an object",
    bytes: "bytes",
    datetime.date: "a date",
}
