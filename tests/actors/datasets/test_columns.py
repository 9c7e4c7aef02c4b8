"""Columns as they are declared, against what they hold: the bad rows are told by number."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ayllu.actors.datasets.columns import check_rows, require_rows
from ayllu.actors.datasets.formats import FORMATS
from ayllu.schemas import DatasetColumnType, InvalidRequest

pytestmark = pytest.mark.requirement("dataset-columns")

TEXT, NUMBER = DatasetColumnType.text, DatasetColumnType.number
DIALOG, JSON, MEDIA = DatasetColumnType.dialog, DatasetColumnType.json, DatasetColumnType.media
MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
PICTURE = {"url": "https://example.org/x.png", "mime_type": "image/png"}


def written(folder: Path, values: list[dict[str, Any]], format_: str = "jsonl") -> Path:
    """Write rows in a format; in CSV, what is no text becomes JSON."""
    path = folder / f"data.{format_}"
    if format_ == "jsonl":
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
    elif format_ == "json":
        path.write_text(json.dumps(values))
    elif format_ == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(values[0]))
        writer.writeheader()
        for value in values:
            writer.writerow(
                {k: v if isinstance(v, str) else json.dumps(v) for k, v in value.items()}
            )
        path.write_text(text.getvalue(), newline="")
    else:
        pq.write_table(pa.Table.from_pylist(values), path)
    return path


@pytest.mark.parametrize("format_", FORMATS)
def test_all_types_in_all_formats(tmp_path: Path, format_: str) -> None:
    columns = {"t": TEXT, "n": NUMBER, "d": DIALOG, "m": MEDIA, "j": JSON}
    row = {"t": "", "n": -1.5, "d": MESSAGES, "m": PICTURE, "j": {"a": [1]}, "more": "x"}
    assert require_rows(written(tmp_path, [row] * 3, format_), format_, columns) == 3


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (TEXT, ["", "x", "1"], [1, True, None, [], {}]),
        (NUMBER, [0, -1, 1.5, 2**64, 10**400], ["1", True, None, [], {}]),
        (JSON, [None, 1, "x", [], {"a": None}, True], []),
        (MEDIA, ["data:,x", "https://h/x", PICTURE], ["x", "ftp://h/x", 1, None, {"url": "x"}, []]),
        (
            DIALOG,
            [
                MESSAGES,
                {"message": MESSAGES[0]},
                {"message": MESSAGES[1], "message_history": MESSAGES},
                {"message": MESSAGES[1], "message_history": None},
                [{"role": "assistant", "content": ["a", PICTURE], "tool_calls": None, "weight": 1}],
            ],
            [
                [], {}, "hi", 1, None, ["hi"], [MESSAGES], [{"role": "robot", "content": "x"}], [{"content": "x"}],
                [{"role": "user", "content": 1}], {"message": "hi"}, {"message_history": MESSAGES},
                {"message": MESSAGES[0], "message_history": {}},
                [{"role": "user", "content": [[[[]]]]}],
            ],
        ),
    ],
)  # fmt: skip
def test_what_a_type_holds(
    tmp_path: Path, kind: DatasetColumnType, good: list[Any], bad: list[Any]
) -> None:
    path = written(tmp_path, [{"x": value} for value in [*good, *bad]])
    report = check_rows(path, "jsonl", {"x": kind}, most=100)
    assert [row.number for row in report.bad] == list(
        range(len(good) + 1, len(good) + len(bad) + 1)
    )
    assert (report.rows, report.wrong) == (len(good) + len(bad), len(bad))


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (NUMBER, ["1", "-1.5", " 2 ", "1e3", "+.5"], ["", "x", "1_0", "nan", "inf", "1e999", "٣", "0x1"]),
        (JSON, ["null", "[1]", '"x"'], ["", "x", "{", "[" * 5000]),
        (DIALOG, [json.dumps(MESSAGES), json.dumps({"message": MESSAGES[0]})], ["", "hi", "[]", "{}"]),
        (MEDIA, ["data:,x", json.dumps(PICTURE)], ["", "x", "{}", "{"]),
        (TEXT, ["", "x"], []),
    ],
)  # fmt: skip
def test_what_a_type_holds_in_csv_where_all_is_text(
    tmp_path: Path, kind: DatasetColumnType, good: list[str], bad: list[str]
) -> None:
    path = written(tmp_path, [{"x": value, "y": ""} for value in [*good, *bad]], "csv")
    report = check_rows(path, "csv", {"x": kind}, most=100)
    assert [row.number for row in report.bad] == list(
        range(len(good) + 1, len(good) + len(bad) + 1)
    )


def test_a_dialog_that_nests_without_end_is_no_dialog(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    deep = "[" * 900 + "]" * 900
    path.write_text(f'{{"x": {deep}}}\n{{"x": {{"message": {deep}}}}}\n')
    assert check_rows(path, "jsonl", {"x": DIALOG}).wrong == 2


def test_the_first_bad_rows_are_told(tmp_path: Path) -> None:
    values = [{"x": "good" if n % 2 else n} for n in range(1, 41)]
    path = written(tmp_path, values)
    with pytest.raises(InvalidRequest) as found:
        require_rows(path, "jsonl", {"x": TEXT})
    details = found.value.info.details
    assert (details["rows"], details["wrong"]) == (40, 20)
    assert [bad["number"] for bad in details["bad"]] == list(range(2, 22, 2))
    assert "row 2:" in found.value.message
    assert "'x'" in found.value.message


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    path = written(tmp_path, [{"a": "1", "b": "2"}, {"a": "1", "x": "2"}])
    with pytest.raises(InvalidRequest, match="'x' is missing; there are 'a', 'b'"):
        require_rows(path, "jsonl", {"x": TEXT})
    assert require_rows(path, "jsonl", {"a": TEXT}) == 2


def test_a_message_is_as_long_as_people_read(tmp_path: Path) -> None:
    path = written(tmp_path, [{f"{n}" * 500: 1 for n in range(9)} | {"x": [{"y" * 5000: 1}]}] * 20)
    with pytest.raises(InvalidRequest) as found:
        require_rows(path, "jsonl", {"x": DIALOG, "z": TEXT})
    assert len(found.value.message) < 2000
    assert "omitted" not in found.value.info.details


@pytest.mark.parametrize("columns", [{}, {"": TEXT}])
def test_columns_that_declare_nothing(
    tmp_path: Path, columns: dict[str, DatasetColumnType]
) -> None:
    with pytest.raises(InvalidRequest):
        require_rows(written(tmp_path, [{"": "x"}]), "jsonl", columns)


def test_an_empty_dataset(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        require_rows(written(tmp_path, []), "jsonl", {"x": TEXT})


def test_a_check_can_be_given_up(tmp_path: Path) -> None:
    path = written(tmp_path, [{"x": "a"}] * 2000)
    ticks: list[int] = []

    def tick() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_rows(path, "jsonl", {"x": TEXT}, tick=tick)
