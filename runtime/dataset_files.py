"""Local files as datasets: how they are sent, and what their columns seem to hold."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..actors.datasets.dialogs import messages_of
from ..actors.datasets.formats import MEDIA_TYPES, BrokenRow, format_of, rows
from ..schemas import Dataset, DatasetColumnType, InvalidRequest

LOOKED_AT = 100
"""How many rows tell what columns hold."""
SENT_BYTES = 300 << 10
"""The largest file that is sent as a ``data:`` URL; a larger one must be where the server may read it."""


def dataset_of(source: str, columns: Sequence[str] = ()) -> Dataset:
    """Return what a file, or what lies at a URL, is as a dataset.

    Args:
        source: the path of a file, or a URL.
        columns: ``NAME=TYPE`` of each; by default those of a file are guessed from its first rows.

    Raises:
        InvalidRequest: there is no such file, or its columns cannot be told.
    """
    given = dict(map(_declared, columns))
    if "://" in source or source.startswith("data:"):
        if not given:
            raise InvalidRequest("name the columns of what lies at a URL: --columns NAME=TYPE ...")
        return Dataset(given, source)
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        raise InvalidRequest(f"there is no file {source}")
    format_ = format_of(path.as_uri())
    return Dataset(given or guessed_columns(path, format_), _address(path, format_))


def _declared(column: str) -> tuple[str, DatasetColumnType]:
    name, _, type_ = column.rpartition("=")
    if not name or type_ not in DatasetColumnType.__members__:
        known = ", ".join(DatasetColumnType)
        raise InvalidRequest(f"{column!r} is not NAME=TYPE with a type of {known}")
    return name, DatasetColumnType(type_)


def _address(path: Path, format_: str) -> str:
    """Return the address of a file: its content itself, where that is small enough to be sent along."""
    if path.stat().st_size > SENT_BYTES:
        return path.as_uri()
    data = base64.b64encode(path.read_bytes()).decode()
    return f"data:{MEDIA_TYPES[format_]};base64,{data}"


def guessed_columns(path: Path, format_: str) -> dict[str, DatasetColumnType]:
    """Return what the columns of a file seem to hold, by its first rows.

    Raises:
        InvalidRequest: it has none, or the first rows cannot be read.
    """
    found: dict[str, list[Any]] = {}
    for number, row in islice(rows(path, format_), LOOKED_AT):
        if isinstance(row, BrokenRow):
            raise InvalidRequest(f"row {number}: {row.message}")
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    if not found:
        raise InvalidRequest("the file has no rows")
    return {name: _type_of(values, format_ == "csv") for name, values in found.items()}


def _type_of(values: Sequence[Any], is_text: bool) -> DatasetColumnType:
    if all(isinstance(value, str) for value in values):
        numbers = is_text and all(map(_is_number, values))
        return DatasetColumnType.number if numbers else DatasetColumnType.text
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return DatasetColumnType.number
    if all(map(_is_dialog, values)):
        return DatasetColumnType.dialog
    return DatasetColumnType.json


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_dialog(value: object) -> bool:
    try:
        return bool(messages_of(value))
    except InvalidRequest:
        return False
