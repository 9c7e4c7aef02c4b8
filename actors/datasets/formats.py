"""How tables are written: JSON lines, JSON, CSV and Parquet, read row by row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import msgspec

from ...schemas import InvalidRequest, TooLarge, Unsupported

FORMATS = ("jsonl", "json", "csv", "parquet")
"""The names of formats."""
MAX_ROW_BYTES = 64 << 20
"""The longest row that is read."""
MAX_JSON_BYTES = 256 << 20
"""The largest JSON file: it is read whole."""
MAX_GROUP_BYTES = 1 << 30
"""The largest row group of a Parquet file, unpacked."""
BATCH_ROWS = 128
"""How many rows of a Parquet file are unpacked at a time."""

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
_MEDIA_TYPES = {
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
MEDIA_TYPES = {
    "jsonl": "application/jsonl",
    "json": "application/json",
    "csv": "text/csv",
    "parquet": "application/vnd.apache.parquet",
}
"""The media type of each format, for ``data:`` URLs."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BrokenRow:
    """A row that cannot be read; those behind it can."""

    message: str


def format_of(url: str, media_type: str | None = None) -> str:
    """Return the format of a content: what its address ends with, or else its media type.

    Args:
        url: its address; of a ``data:`` URL, the media type in it counts.
        media_type: what came with the content.

    Raises:
        Unsupported: neither tells a format.
    """
    scheme, _, rest = url.partition(":")
    path = ""
    if scheme == "data":
        media_type = rest.partition(",")[0]
    else:
        path = urlsplit(url).path
    found = _SUFFIXES.get(Path(path).suffix.lower())
    if found is None and media_type is not None:
        found = _MEDIA_TYPES.get(media_type.partition(";")[0].strip().lower())
    if found is None:
        raise Unsupported(
            f"the format of the content is not known: its address ends with {', '.join(_SUFFIXES)}, "
            f"or its media type is that of {', '.join(MEDIA_TYPES.values())}"
        )
    return found


def rows(path: Path, format: str) -> Iterator[tuple[int, Row | BrokenRow]]:
    """Read the rows of a file, with their numbers from 1; empty lines are none.

    Args:
        path: the file.
        format: one of `FORMATS`.

    Raises:
        InvalidRequest: the file as a whole is not of this format.
        TooLarge: it is larger than can be read.
    """
    return zip(count(1), _READERS[format](path), strict=False)


def _read_jsonl(path: Path) -> Iterator[Row | BrokenRow]:
    decoder = msgspec.json.Decoder(Any)
    with path.open("rb") as file:
        for line in _lines(file):
            if line is None:
                yield BrokenRow(f"it is longer than {MAX_ROW_BYTES} bytes")
            elif line.strip(_BLANK):
                yield _decoded(line, decoder)


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Read lines; one that is too long is skipped and told by None."""
    start = True
    while line := file.readline(MAX_ROW_BYTES + 1):
        if start and line.startswith(_BOM):
            line = line[len(_BOM) :]
        start = False
        if len(line) <= MAX_ROW_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while (rest := file.readline(MAX_ROW_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def _decoded(text: bytes, decoder: msgspec.json.Decoder[Any]) -> Row | BrokenRow:
    try:
        # Strictly: the decoder looks into the text of a string only as far as it must.
        value = decoder.decode(text.decode())
    except UnicodeDecodeError:
        return BrokenRow("it is not UTF-8")
    except (msgspec.DecodeError, RecursionError) as error:
        return BrokenRow(f"it is not JSON: {_reason(error)}")
    return _row_of(value)


def _row_of(value: object) -> Row | BrokenRow:
    return value if isinstance(value, dict) else BrokenRow("it is not an object")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return str(error).removeprefix("JSON is malformed: ")


def _read_json(path: Path) -> Iterator[Row | BrokenRow]:
    with path.open("rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise TooLarge(f"a JSON file has at most {MAX_JSON_BYTES} bytes; JSON lines have no limit")
    try:
        values = msgspec.json.decode(data.removeprefix(_BOM).decode())
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the content is not UTF-8, at byte {error.start}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"the content is not JSON: {_reason(error)}") from error
    if not isinstance(values, list):
        raise InvalidRequest("the content is JSON, but not an array of objects")
    yield from map(_row_of, values)


def _read_csv(path: Path) -> Iterator[Row | BrokenRow]:
    # The limit is the process's; Python's own, 128 KiB, is less than a long text has.
    csv.field_size_limit(MAX_ROW_BYTES)
    # Bytes that are not UTF-8 become surrogates, so that only their row is lost.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(_text_lines(file), strict=True)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise InvalidRequest(f"the first line has no column names: {error}") from error
        if len(set(header)) != len(header):
            raise InvalidRequest("the first line names a column twice")
        if not _is_utf8(header):
            raise InvalidRequest("the first line is not UTF-8")
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield BrokenRow(f"it is not CSV: {error}")
                continue
            if cells is None:
                return
            if cells:
                yield _row_of_cells(header, cells)


def _text_lines(file: io.TextIOBase | io.TextIOWrapper) -> Iterator[str]:
    while line := file.readline(MAX_ROW_BYTES + 1):
        if len(line) > MAX_ROW_BYTES:
            raise TooLarge(f"a line is longer than {MAX_ROW_BYTES} characters")
        yield line


def _row_of_cells(header: list[str], cells: list[str]) -> Row | BrokenRow:
    if len(cells) != len(header):
        return BrokenRow(f"it has {len(cells)} cells, and the first line names {len(header)}")
    if not _is_utf8(cells):
        return BrokenRow("it is not UTF-8")
    return dict(zip(header, cells, strict=True))


def _is_utf8(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_parquet(path: Path) -> Iterator[Row | BrokenRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = (file.metadata.row_group(n) for n in range(file.metadata.num_row_groups))
            if any(group.total_byte_size > MAX_GROUP_BYTES for group in groups):
                raise TooLarge(f"a row group has at most {MAX_GROUP_BYTES} bytes")
            if len(set(file.schema_arrow.names)) != len(file.schema_arrow.names):
                raise InvalidRequest("the file names a column twice")
            for batch in file.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                for number in range(batch.num_rows):
                    yield _row_of_batch(batch, number)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the content is not Parquet: {_first_line(error, path)}") from error


def _row_of_batch(batch: Any, number: int) -> Row | BrokenRow:
    try:
        return {name: batch.column(name)[number].as_py() for name in batch.schema.names}
    except UnicodeDecodeError:
        return BrokenRow("it is not UTF-8")
    except (ValueError, OverflowError) as error:  # Such as a date behind the year 9999.
        return BrokenRow(f"a value cannot be read: {error}")


def _first_line(error: Exception, path: Path) -> str:
    # Where our copy lies is nobody's business.
    return str(error).split("\n", 1)[0].replace(str(path), "the file")[:200]


_READERS = {
    "jsonl": _read_jsonl,
    "json": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
}
