"""The formats of datasets: their rows one after the other, with their numbers, and what is wrong with those that cannot be read.

Nothing here holds a whole file in memory, except one in the format ``json``.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final
from urllib.parse import unquote, urlsplit

import msgspec

from ...schemas import InvalidRequest, TooLarge, decode

MAX_ROW_BYTES: Final = 32 << 20
"""The longest line of a file."""
MAX_JSON_BYTES: Final = 256 << 20
"""The largest file in the format ``json``, which is read as a whole."""
MAX_GROUP_BYTES: Final = 2 << 30
"""The largest row group of a Parquet file, decompressed."""
BATCH_ROWS = 256
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

SUFFIXES: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
MEDIA_TYPES: Mapping[str, str] = {
    "application/jsonl": "jsonl",
    "application/x-jsonl": "jsonl",
    "application/jsonlines": "jsonl",
    "application/x-jsonlines": "jsonl",
    "application/x-ndjson": "jsonl",
    "application/ndjson": "jsonl",
    "application/json": "json",
    "text/json": "json",
    "text/csv": "csv",
    "application/csv": "csv",
    "application/vnd.apache.parquet": "parquet",
    "application/x-parquet": "parquet",
    "application/parquet": "parquet",
}


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read, or does not fit; rows are counted from 1 (in ``jsonl``, lines are)."""

    number: int
    message: str


Row = dict[str, Any]


def format_of(name_or_url: str, media_type: str | None = None) -> str:
    """Return the format that the end of a name or an address says, or else its media type.

    Raises:
        InvalidRequest: neither says one.
    """
    parts = urlsplit(name_or_url)
    if parts.scheme == "data":
        name, media_type = "", media_type or parts.path.partition(",")[0]
    else:
        name = unquote(parts.path)
    essence = (media_type or "").partition(";")[0].strip().lower()
    suffix = PurePosixPath(name).suffix.lower()
    found = SUFFIXES.get(suffix) or MEDIA_TYPES.get(essence)
    if found is None:
        raise InvalidRequest(
            f"the format of the content is not known: {_said(suffix, essence)}; "
            f"a name ends in {', '.join(SUFFIXES)}, or the media type is one of {', '.join(MEDIA_TYPES)}"
        )
    return found


def _said(suffix: str, essence: str) -> str:
    said = [f"the name ends in {suffix[:20]!r}"] if suffix else ["the name has no known end"]
    return " and ".join([*said, f"the media type is {essence[:60]!r}"] if essence else said)


def rows(path: Path, format: str) -> Iterator[tuple[int, Row]]:  # noqa: A002 - what the interface calls it
    """Yield the rows of a file with their numbers.

    Raises:
        InvalidRequest: the file, or a row of it, cannot be read; the message has the row's number.
    """
    for row in rows_or_errors(path, format):
        if isinstance(row, BadRow):
            raise InvalidRequest(f"row {row.number}: {row.message}")
        yield row


def rows_or_errors(path: Path, format: str) -> Iterator[tuple[int, Row] | BadRow]:  # noqa: A002
    """Yield the rows of a file with their numbers, and in their places what is wrong with those that cannot be read.

    Raises:
        InvalidRequest: the file as a whole cannot be read.
    """
    reader = FORMATS.get(format)
    if reader is None:
        raise InvalidRequest(f"there is no format {format!r}; there are {', '.join(FORMATS)}")
    try:
        yield from reader(path)
    except OSError as error:
        raise InvalidRequest(f"the content cannot be read: {error.strerror}") from error


class _Lines:
    """The lines of a file as text; what is wrong with one is raised, and then the next can be read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if self.number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        if len(line) > MAX_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = self._file.readline(MAX_ROW_BYTES)
            raise TooLarge(f"a line is longer than {MAX_ROW_BYTES} bytes")
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(_not_text(error)) from error


def _not_text(error: UnicodeDecodeError) -> str:
    return f"it is not UTF-8 text: the byte {error.object[error.start]:#04x} stands at {error.start + 1}"


def _read_row(number: int, text: str | bytes | msgspec.Raw) -> tuple[int, Row] | BadRow:
    try:
        return number, decode(bytes(text) if isinstance(text, msgspec.Raw) else text, Row)
    except InvalidRequest as error:
        return BadRow(number, error.message)


def _jsonl(path: Path) -> Iterator[tuple[int, Row] | BadRow]:
    with path.open("rb") as file:
        lines = _Lines(file)
        while True:
            try:
                line = next(lines, None)
            except InvalidRequest as error:
                yield BadRow(lines.number, error.message)
                continue
            if line is None:
                return
            if line.strip():
                yield _read_row(lines.number, line)


def _json(path: Path) -> Iterator[tuple[int, Row] | BadRow]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise TooLarge(
            f"a json file has at most {MAX_JSON_BYTES} bytes: write it as jsonl, one row a line"
        )
    text = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
    if not text.strip():
        return
    try:
        found = decode(text, list[msgspec.Raw])
    except InvalidRequest as error:
        raise InvalidRequest(
            f"the content is not a JSON list of objects: {error.message}"
        ) from error
    for number, row in enumerate(found, 1):
        yield _read_row(number, row)


def _csv(path: Path) -> Iterator[tuple[int, Row] | BadRow]:
    # One number for the whole process; ours is larger than what anybody else needs.
    csv.field_size_limit(MAX_ROW_BYTES)
    with path.open("rb") as file:
        reader = csv.reader(_Lines(file), strict=True)
        try:
            header = next(reader, None)
        except (csv.Error, InvalidRequest) as error:
            raise InvalidRequest(f"the header cannot be read: {error}") from error
        if header is None:
            return
        if len(set(header)) < len(header):
            raise InvalidRequest(f"two columns of the header have one name: {', '.join(header)}")
        number = 0
        while True:
            try:
                cells = next(reader, None)
            except (csv.Error, InvalidRequest) as error:
                number += 1
                yield BadRow(number, str(error))
                continue
            if cells is None:
                return
            if not cells:
                continue  # An empty line.
            number += 1
            if len(cells) == len(header):
                yield number, dict(zip(header, cells, strict=True))
            else:
                found = f"it has {len(cells)} cells where the header has {len(header)}"
                yield BadRow(number, found)


def _parquet(path: Path) -> Iterator[tuple[int, Row] | BadRow]:
    # Seldom needed, and large.
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.stat().st_size:
        return
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                if file.metadata.row_group(group).total_byte_size > MAX_GROUP_BYTES:
                    raise TooLarge(f"a row group has more than {MAX_GROUP_BYTES} bytes")
            if len(set(file.schema_arrow.names)) < len(file.schema_arrow.names):
                raise InvalidRequest("two columns have one name")
            for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: _present(value) for name, value in row.items()}
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError) as error:
        # Arrow's own words may hold the file's path.
        where = f" after row {number}" if number else ""
        raise InvalidRequest(f"the content is not a whole Parquet file{where}") from error


def _present(value: Any) -> Any:
    """Return a value without the nulls in its objects: in Parquet, all objects of a column have the same keys."""
    if isinstance(value, dict):
        return {key: _present(one) for key, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_present(one) for one in value]
    return value


FORMATS: Mapping[str, Callable[[Path], Iterator[tuple[int, Row] | BadRow]]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
}
"""What reads each format."""
