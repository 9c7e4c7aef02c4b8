"""The examples of a dataset in the forms that trainers take: TRL's ``messages``, ``prompt`` and ``completion``, ``text``,
and ``prompt``, ``chosen`` and ``rejected`` (https://huggingface.co/docs/trl/dataset_formats).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...schemas import DatasetColumnType, InvalidRequest
from .columns import typed
from .dialogs import plain_messages
from .formats import Row, rows

Method = Literal["sft", "dpo", "reward"]

_TEXT = DatasetColumnType.text
_DIALOG = DatasetColumnType.dialog
_NEEDED: Mapping[Method, str] = {
    "sft": "one column of type dialog, or prompt and completion of type text, or text of type text",
    "dpo": "prompt, chosen and rejected, all of type text or all of type dialog",
    "reward": "prompt, chosen and rejected, all of type text or all of type dialog",
}


@dataclass(frozen=True, slots=True)
class TrainingForm:
    """How a dataset is trained on.

    Attributes:
        kind: ``messages``, ``prompt_completion``, ``text`` or ``preference``.
        columns: the columns that are read, of those that are declared.
    """

    kind: Literal["messages", "prompt_completion", "text", "preference"]
    columns: Mapping[str, DatasetColumnType]


def training_form(columns: Mapping[str, DatasetColumnType], method: Method) -> TrainingForm:
    """Return how a dataset of some columns is trained on; columns that are not needed are left alone.

    Raises:
        InvalidRequest: it cannot be; the message says which columns are needed, and which there are.
    """
    form = _sft_form(columns) if method == "sft" else _dpo_form(columns)
    if form is None:
        there = ", ".join(f"{name} of type {type_.value}" for name, type_ in columns.items())
        raise InvalidRequest(
            f"columns: {method} needs {_NEEDED[method]}; there are {there or 'none'}"
        )
    return form


def _sft_form(columns: Mapping[str, DatasetColumnType]) -> TrainingForm | None:
    dialogs = {name: _DIALOG for name, type_ in columns.items() if type_ is _DIALOG}
    if len(dialogs) == 1:
        return TrainingForm("messages", dialogs)
    if dialogs:
        return None  # Which one is meant, nobody can tell.
    if columns.get("prompt") is _TEXT and columns.get("completion") is _TEXT:
        return TrainingForm("prompt_completion", {"prompt": _TEXT, "completion": _TEXT})
    if columns.get("text") is _TEXT:
        return TrainingForm("text", {"text": _TEXT})
    return None


def _dpo_form(columns: Mapping[str, DatasetColumnType]) -> TrainingForm | None:
    found = {name: columns[name] for name in ("prompt", "chosen", "rejected") if name in columns}
    if len(found) == 3 and set(found.values()) in ({_TEXT}, {_DIALOG}):
        return TrainingForm("preference", found)
    return None


def examples(
    path: Path, format: str, columns: Mapping[str, DatasetColumnType], method: Method
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the examples of a file, with the numbers of their rows.

    For ``sft``, an example is ``{"messages": [{"role": ..., "content": ...}]}``, ``{"prompt": ..., "completion": ...}`` or
    ``{"text": ...}``; for ``dpo``, ``{"prompt": ..., "chosen": ..., "rejected": ...}``, all text or all lists of messages.

    Raises:
        InvalidRequest: the columns do not fit the method, or a row cannot be trained on; the message has its number.
    """
    form = training_form(columns, method)
    for number, row in rows(path, format):
        try:
            yield number, _EXAMPLES[form.kind](typed(row, form.columns, format))
        except InvalidRequest as error:
            raise InvalidRequest(
                f"row {number}: {error.message}",
                details={"bad": [{"number": number, "message": error.message[:300]}]},
            ) from error


def _of_messages(row: Row) -> dict[str, Any]:
    ((name, dialog),) = row.items()
    messages = _messages(name, dialog)
    if all(message["role"] != "assistant" for message in messages):
        raise InvalidRequest(f"the dialog {name!r} has no message of the assistant to learn from")
    return {"messages": messages}


def _of_prompt_completion(row: Row) -> dict[str, Any]:
    _require_text(row, "completion")
    return row


def _of_text(row: Row) -> dict[str, Any]:
    _require_text(row, "text")
    return row


def _of_preference(row: Row) -> dict[str, Any]:
    if isinstance(row["prompt"], str):
        for name in ("prompt", "chosen", "rejected"):
            _require_text(row, name)
        example: dict[str, Any] = row
    else:
        example = {name: _messages(name, dialog) for name, dialog in row.items()}
        for name in ("chosen", "rejected"):
            if example[name][-1]["role"] != "assistant":
                raise InvalidRequest(f"the dialog {name!r} does not end with the assistant")
    if example["chosen"] == example["rejected"]:
        raise InvalidRequest("chosen and rejected are the same: there is nothing to prefer")
    return example


def _messages(name: str, dialog: object) -> list[dict[str, str]]:
    try:
        return plain_messages(dialog)
    except InvalidRequest as error:
        raise InvalidRequest(f"the dialog {name!r}: {error.message}") from error


def _require_text(row: Row, name: str) -> None:
    if not row[name]:
        raise InvalidRequest(f"the column {name!r} is empty")


_EXAMPLES = {
    "messages": _of_messages,
    "prompt_completion": _of_prompt_completion,
    "text": _of_text,
    "preference": _of_preference,
}
