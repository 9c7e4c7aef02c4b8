"""The formats of datasets: what is written is read again, and what cannot be read is told by its row."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ayllu.actors.datasets import formats
from ayllu.actors.datasets.formats import FORMATS, MEDIA_TYPES, BrokenRow, format_of, rows
from ayllu.schemas import InvalidRequest, TooLarge, Unsupported

pytestmark = pytest.mark.requirement("dataset-formats")

Rows = list[dict[str, Any]]
# Without surrogates, which no UTF-8 has.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)


def read(data: bytes, format_: str) -> list[tuple[int, dict[str, Any] | BrokenRow]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data"
        path.write_bytes(data)
        return list(rows(path, format_))


def good(data: bytes, format_: str) -> Rows:
    found = read(data, format_)
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    return [row for _, row in found if isinstance(row, dict)]


def broken(data: bytes, format_: str) -> list[int]:
    return [number for number, row in read(data, format_) if isinstance(row, BrokenRow)]


def as_csv(header: list[str], cells: list[list[str]], **options: Any) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, **options)
    writer.writerow(header)
    writer.writerows(cells)
    return text.getvalue().encode()


def as_parquet(values: Rows) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(values), sink, row_group_size=3)
    return sink.getvalue()


@given(
    st.lists(st.dictionaries(TEXT, JSON, max_size=3), max_size=5),
    st.sampled_from(["\n", "\r\n", "\n\n \t"]),
)
@settings(max_examples=60)
def test_json_lines_are_read_as_they_were_written(values: Rows, end: str) -> None:
    for ascii_ in (True, False):
        # Separators of lines of Unicode stand in a string as they are: only a line feed ends a row.
        text = end.join(json.dumps(value, ensure_ascii=ascii_) for value in values)
        assert good(text.encode(), "jsonl") == values
        assert good(("\ufeff" + text + end).encode(), "jsonl") == values


@given(st.lists(st.dictionaries(TEXT, JSON, max_size=3), max_size=5))
@settings(max_examples=40)
def test_json_is_read_as_it_was_written(values: Rows) -> None:
    assert good(json.dumps(values, indent=1).encode(), "json") == values
    assert good(("\ufeff" + json.dumps(values, ensure_ascii=False)).encode(), "json") == values


@given(st.data())
@settings(max_examples=60)
def test_csv_is_read_as_it_was_written(data: st.DataObject) -> None:
    header = data.draw(st.lists(TEXT, min_size=2, max_size=4, unique=True))
    cells = data.draw(
        st.lists(st.lists(TEXT, min_size=len(header), max_size=len(header)), max_size=5)
    )
    for options in ({}, {"lineterminator": "\n", "quoting": csv.QUOTE_ALL}):
        found = good(as_csv(header, cells, **options), "csv")
        assert found == [dict(zip(header, row, strict=True)) for row in cells]


ROW = st.fixed_dictionaries(
    {
        "text": TEXT,
        "number": st.integers(-(2**63), 2**63 - 1),
        "float": st.floats(allow_nan=False),
        "dialog": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant"]), "content": TEXT}
            ),
            max_size=3,
        ),
    }
)


@given(st.lists(ROW, min_size=1, max_size=7))
@settings(max_examples=30)
def test_parquet_is_read_as_it_was_written(values: Rows) -> None:
    assert good(as_parquet(values), "parquet") == values


@given(st.binary(max_size=200), st.sampled_from(FORMATS))
@settings(max_examples=200)
def test_whatever_comes_is_read_or_refused(data: bytes, format_: str) -> None:
    try:
        found = read(data, format_)
    except InvalidRequest:
        return
    assert all(isinstance(row, dict | BrokenRow) for _, row in found)


@given(st.data())
# The same ones each time: what such a file does to Arrow's C++ must not depend on the day.
@settings(max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_parquet_file_is_read_or_refused(data: st.DataObject) -> None:
    whole = bytearray(as_parquet([{"text": f"row {n}", "number": n} for n in range(10)]))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(4, len(whole) - 1))
        whole[place] ^= data.draw(st.integers(1, 255))
    with suppress(InvalidRequest):
        read(bytes(whole), "parquet")


@pytest.mark.parametrize(
    ("line", "numbers"),
    [
        (b'{"a": 1}\n{"a": \n{"a": 3}\n', [2]),
        (b'[1]\n1\n"x"\nnull\n{}\n', [1, 2, 3, 4]),
        (b'{"a": "\xff"}\n{"a": 1}\n', [1]),
        (b'{"a": "\\ud800"}\n{"a": NaN}\n{"a": 1e999}\n{}\n', [1, 2, 3]),
        (b'{"a": ' + b"[" * 100_000 + b"\n{}\n", [1]),
        (b'{"a": 1} {"a": 2}\n', [1]),
    ],
)
def test_a_broken_line_is_told_by_its_number(line: bytes, numbers: list[int]) -> None:
    assert broken(line, "jsonl") == numbers


def test_a_broken_record_of_csv_is_told_by_its_number() -> None:
    data = b'a,b\n1,2\n1\n1,2,3\n"x"y,2\n\xff,2\n\n"x\ny",2\n'
    found = read(data, "csv")
    assert [number for number, row in found if isinstance(row, BrokenRow)] == [2, 3, 4, 5]
    assert found[-1] == (6, {"a": "x\ny", "b": "2"})
    assert broken(b'a\n"never closed\nx\n', "csv") == [1]


@pytest.mark.parametrize(
    ("data", "format_"),
    [
        (b"{}", "json"),
        (b"[", "json"),
        (b"", "json"),
        (b"[{}] []", "json"),
        (b'[{"a": "\xff"}]', "json"),
        (b"[" * 100_000, "json"),
        ("a,b\n1,2\n".encode("utf-16"), "csv"),
        (b"a,a\n1,2\n", "csv"),
        (b'"a\n', "csv"),
        (b"", "parquet"),
        (b"PAR1", "parquet"),
        (b"a,b\n1,2\n", "parquet"),
    ],
)
def test_a_file_that_is_none_of_its_format(data: bytes, format_: str) -> None:
    with pytest.raises(InvalidRequest) as found:
        read(data, format_)
    assert "/" not in found.value.message  # Where it lies is nobody's business.


def test_an_element_of_json_that_is_no_row() -> None:
    assert broken(b'[{}, 1, [], {"a": null}]', "json") == [2, 3]


def test_a_file_without_rows() -> None:
    nothing = [
        (b"", "jsonl"),
        (b"\n \n", "jsonl"),
        (b"[]", "json"),
        (b"", "csv"),
        (b"a,b\r\n", "csv"),
    ]
    for data, format_ in nothing:
        assert read(data, format_) == []


def test_what_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_ROW_BYTES", 100)
    long = b'{"a": "%b"}' % (b"x" * 500)
    assert broken(b"{}\n" + long + b"\n{}\n" + long, "jsonl") == [2, 4]
    monkeypatch.setattr(formats, "MAX_JSON_BYTES", 100)
    with pytest.raises(TooLarge):
        read(b"[" + long + b"]", "json")
    monkeypatch.setattr(formats, "MAX_GROUP_BYTES", 10)
    with pytest.raises(TooLarge):
        read(as_parquet([{"a": "x" * 100}]), "parquet")


@pytest.mark.parametrize(
    ("url", "media_type", "format_"),
    [
        ("file:///x.jsonl", None, "jsonl"),
        ("https://h/x.NDJSON?y=z.csv", None, "jsonl"),
        ("https://h/x.json#y", "text/csv", "json"),
        ("https://h/x.csv", None, "csv"),
        ("https://h/a.b/x.parquet", None, "parquet"),
        ("https://h/x", "application/x-ndjson; charset=utf-8", "jsonl"),
        ("https://h/x", "TEXT/CSV", "csv"),
        *(
            (f"data:{media_type};base64,", None, format_)
            for format_, media_type in MEDIA_TYPES.items()
        ),
        ("data:text/csv;charset=utf-8,a", "application/json", "csv"),
    ],
)
def test_the_format_is_told_by_name_or_media_type(
    url: str, media_type: str | None, format_: str
) -> None:
    assert format_of(url, media_type) == format_


@pytest.mark.parametrize(
    "url", ["https://h/x", "https://h/x.txt", "data:,x", "data:text/plain,x.csv", "file:///jsonl"]
)
def test_a_format_that_nothing_tells(url: str) -> None:
    with pytest.raises(Unsupported):
        format_of(url, "text/html")


def test_rows_come_one_after_the_other(tmp_path: Path) -> None:
    """The first row is there before the last one was looked at."""
    writers: list[tuple[str, Callable[[], bytes]]] = [
        ("jsonl", lambda: b'{"a": 1}\n' * 3 + b"{"),
        ("csv", lambda: b"a\n1\n2\n" + b'"'),
    ]
    for format_, data in writers:
        path = tmp_path / format_
        path.write_bytes(data())
        assert isinstance(next(iter(rows(path, format_)))[1], dict)
