"""Rows as examples of training, in the forms of TRL."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ayllu.actors.datasets.examples import examples, training_form
from ayllu.schemas import DatasetColumnType, Dialog, InvalidRequest, Message, Role, encode

pytestmark = pytest.mark.requirement("dataset-examples")

TEXT, DIALOG, NUMBER = DatasetColumnType.text, DatasetColumnType.dialog, DatasetColumnType.number
USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
Method = Literal["sft", "dpo"]
Columns = dict[str, DatasetColumnType]


def read(
    folder: Path, values: list[Any], columns: Columns, method: Method = "sft"
) -> list[tuple[int, dict[str, Any]]]:
    path = folder / "data.jsonl"
    path.write_bytes(b"\n".join(encode(value) for value in values))
    return list(examples(path, "jsonl", columns, method))


@pytest.mark.parametrize(
    ("columns", "method", "kind"),
    [
        ({"x": DIALOG}, "sft", "messages"),
        ({"x": DIALOG, "text": TEXT, "prompt": TEXT, "completion": TEXT, "n": NUMBER}, "sft", "messages"),
        ({"prompt": TEXT, "completion": TEXT, "text": TEXT}, "sft", "prompt_completion"),
        ({"text": TEXT, "prompt": TEXT}, "sft", "text"),
        ({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT, "text": TEXT}, "dpo", "preference"),
        ({"prompt": DIALOG, "chosen": DIALOG, "rejected": DIALOG, "n": NUMBER}, "dpo", "preference"),
    ],
)  # fmt: skip
def test_the_form_that_columns_have(columns: Columns, method: Method, kind: str) -> None:
    form = training_form(columns, method)
    assert form.kind == kind
    assert form.columns.items() <= columns.items()


@pytest.mark.parametrize(
    ("columns", "method"),
    [
        ({}, "sft"),
        ({"a": TEXT}, "sft"),
        ({"text": NUMBER}, "sft"),
        ({"prompt": TEXT}, "sft"),
        ({"prompt": TEXT, "completion": NUMBER}, "sft"),
        ({"a": DIALOG, "b": DIALOG}, "sft"),
        ({"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}, "sft"),
        ({"prompt": TEXT, "chosen": DIALOG, "rejected": DIALOG}, "dpo"),
        ({"prompt": DIALOG, "chosen": DIALOG, "rejected": TEXT}, "dpo"),
        ({"prompt": NUMBER, "chosen": NUMBER, "rejected": NUMBER}, "dpo"),
        ({"chosen": TEXT, "rejected": TEXT}, "dpo"),
        ({"messages": DIALOG}, "dpo"),
    ],
)
def test_columns_of_no_form(columns: Columns, method: Method) -> None:
    with pytest.raises(InvalidRequest) as found:
        training_form(columns, method)
    assert f"{method} needs" in found.value.message
    assert all(name in found.value.message for name in columns)


DIALOGS = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=8)), max_size=4
).map(lambda said: [*said, ("assistant", "x")])


@given(st.lists(DIALOGS, min_size=1, max_size=4))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_dialog_is_its_messages_however_it_is_written(
    tmp_path: Path, dialogs: list[list[tuple[str, str]]]
) -> None:
    wanted = [
        (number, {"messages": [{"role": role, "content": text} for role, text in dialog]})
        for number, dialog in enumerate(dialogs, 1)
    ]
    said = [[Message(Role(role), text) for role, text in dialog] for dialog in dialogs]
    as_list = [{"d": messages} for messages in said]
    as_dialog = [{"d": Dialog(messages[-1], messages[:-1])} for messages in said]
    assert read(tmp_path, as_list, {"d": DIALOG}) == wanted
    assert read(tmp_path, as_dialog, {"d": DIALOG}) == wanted
    cells = ["d", *('"' + encode(one["d"]).decode().replace('"', '""') + '"' for one in as_list)]
    csv_path = tmp_path / "data.csv"
    csv_path.write_text("\n".join(cells), newline="")
    assert list(examples(csv_path, "csv", {"d": DIALOG}, "sft")) == wanted
    table = pa.Table.from_pylist([json.loads(encode(one)) for one in as_dialog])
    pq.write_table(table, tmp_path / "data.parquet")
    assert list(examples(tmp_path / "data.parquet", "parquet", {"d": DIALOG}, "sft")) == wanted


def test_texts_are_examples_as_they_are(tmp_path: Path) -> None:
    rows = [{"prompt": "", "completion": "b\n", "text": " ", "n": 1}]
    pair = {"prompt": TEXT, "completion": TEXT, "n": NUMBER}
    assert read(tmp_path, rows, pair) == [(1, {"prompt": "", "completion": "b\n"})]
    assert read(tmp_path, rows, {"text": TEXT}) == [(1, {"text": " "})]
    preference = {"prompt": "p", "chosen": "c", "rejected": "r"}
    columns = dict.fromkeys(preference, TEXT)
    assert read(tmp_path, [preference], columns, "dpo") == [(1, preference)]


def test_preferences_between_dialogs(tmp_path: Path) -> None:
    other = {"role": "assistant", "content": "go away"}
    row = {"prompt": [USER], "chosen": {"message": ASSISTANT}, "rejected": [other]}
    columns = dict.fromkeys(row, DIALOG)
    assert read(tmp_path, [row], columns, "dpo") == [
        (1, {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [other]})
    ]


@pytest.mark.parametrize(
    ("row", "columns", "method"),
    [
        ({"d": [USER]}, {"d": DIALOG}, "sft"),  # Nothing to learn from.
        ({"d": []}, {"d": DIALOG}, "sft"),
        ({"d": "hi"}, {"d": DIALOG}, "sft"),
        ({"d": None}, {"d": DIALOG}, "sft"),
        ({}, {"d": DIALOG}, "sft"),
        ({"d": [{**ASSISTANT, "content": [{"url": "data:,x", "mime_type": "image/png"}]}]}, {"d": DIALOG}, "sft"),
        ({"d": [{**ASSISTANT, "tool_calls": [{"tool_name": "f", "arguments": {}}]}]}, {"d": DIALOG}, "sft"),
        ({"text": ""}, {"text": TEXT}, "sft"),
        ({"text": 1}, {"text": TEXT}, "sft"),
        ({"prompt": "p", "completion": ""}, {"prompt": TEXT, "completion": TEXT}, "sft"),
        ({"prompt": "p", "chosen": "", "rejected": "r"}, dict.fromkeys(("prompt", "chosen", "rejected"), TEXT), "dpo"),
        ({"prompt": "p", "chosen": "r", "rejected": "r"}, dict.fromkeys(("prompt", "chosen", "rejected"), TEXT), "dpo"),
        (
            {"prompt": [USER], "chosen": [USER], "rejected": [ASSISTANT]},
            dict.fromkeys(("prompt", "chosen", "rejected"), DIALOG),
            "dpo",
        ),
    ],
)  # fmt: skip
def test_a_row_that_is_no_example_is_told_by_its_number(
    tmp_path: Path, row: dict[str, Any], columns: Columns, method: Method
) -> None:
    good = {name: "x" if kind is TEXT else [ASSISTANT] for name, kind in columns.items()}
    if method == "dpo":
        good["rejected"] = "y" if columns["rejected"] is TEXT else [{**ASSISTANT, "content": "y"}]
    with pytest.raises(InvalidRequest, match=r"^row 3: ") as found:
        read(tmp_path, [good, good, row, good], columns, method)
    assert found.value.details["bad"][0]["number"] == 3


def test_a_broken_line_ends_the_examples(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(InvalidRequest, match=r"^row 2: "):
        list(examples(path, "jsonl", {"text": TEXT}, "sft"))


def test_examples_need_no_torch() -> None:
    """A trainer's worker reads them too, and shall not load what only its child needs."""
    code = (
        "import sys; import ayllu.actors.datasets.examples, ayllu.actors.datasets.actor;"
        "print([name for name in ('torch', 'datasets', 'transformers', 'pyarrow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
