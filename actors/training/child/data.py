"""Datasets as the trainers take them: read, made into tokens, measured."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....schemas import InvalidRequest
from ...datasets.examples import Method, examples
from ..protocol import DataFile
from .tokens import Comparison, Encoder, Pair, Tokens

if TYPE_CHECKING:
    from datasets import Dataset

_NAMED = 20
"""How many rows a message names."""
_BLOCK = 4096
"""Examples that become one block of the table."""

Encoded = Tokens | Pair | Comparison
_FORMS: Mapping[Method, type[Encoded]] = {"sft": Tokens, "dpo": Pair, "reward": Comparison}


def load_examples(
    file: DataFile, encoder: Encoder, method: Method, longest: int
) -> tuple[Dataset, int]:
    """Return the examples of a file as tokens, and how many tokens they have.

    Raises:
        InvalidRequest: some cannot be trained on, or are longer than ``longest`` tokens; the message names the rows.
    """
    encoders: Mapping[Method, Callable[[dict[str, Any]], Encoded]] = {
        "sft": encoder.tokens,
        "dpo": encoder.pair,
        "reward": encoder.comparison,
    }
    encode = encoders[method]
    table = _Table(_FORMS[method]._fields)
    too_long: list[tuple[int, int]] = []
    for row, example in _named(file, method):
        try:
            encoded = encode(example)
        except InvalidRequest as error:
            raise InvalidRequest(f"{file.name}: row {row}: {error.message}") from error
        if longest and (length := _length(encoded)) > longest:
            too_long.append((row, length))
        elif not too_long:
            table.add(encoded)
    if too_long:
        rows = ", ".join(f"{row} ({length})" for row, length in too_long[:_NAMED])
        more = f" and {len(too_long) - _NAMED} more" if len(too_long) > _NAMED else ""
        raise InvalidRequest(
            f"{file.name}: rows with more than {longest} tokens (none is cut): {rows}{more}"
        )
    if not table.rows:
        raise InvalidRequest(f"{file.name} has no examples")
    return table.dataset(), table.tokens


def _named(file: DataFile, method: Method) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        yield from examples(Path(file.path), file.format, file.columns, method)
    except InvalidRequest as error:
        raise InvalidRequest(f"{file.name}: {error.message}", details=error.details) from error


class _Table:
    """Columns of lists of tokens that grow, in four bytes a token."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._lists: list[list[array[int]]] = [[] for _ in names]
        self._blocks: list[Any] = []
        self.rows = 0
        self.tokens = 0

    def add(self, encoded: Encoded) -> None:
        for lists, tokens in zip(self._lists, encoded, strict=True):
            lists.append(array("i", tokens))
        self.rows += 1
        self.tokens += _total(encoded)
        if len(self._lists[0]) == _BLOCK:
            self._close_block()

    def dataset(self) -> Dataset:
        import pyarrow as pa
        from datasets import Dataset

        self._close_block()
        return Dataset(pa.Table.from_batches(self._blocks))

    def _close_block(self) -> None:
        import pyarrow as pa

        if self._lists[0]:
            kind = pa.list_(pa.int32())
            columns = [pa.array(lists, type=kind) for lists in self._lists]
            self._blocks.append(pa.RecordBatch.from_arrays(columns, names=list(self._names)))
            self._lists = [[] for _ in self._names]


def _length(encoded: Encoded) -> int:
    if isinstance(encoded, Tokens):
        return len(encoded.input_ids)
    if isinstance(encoded, Comparison):
        return max(len(encoded.chosen_ids), len(encoded.rejected_ids))
    return len(encoded.prompt_ids) + max(len(encoded.chosen_ids), len(encoded.rejected_ids))


def _total(encoded: Encoded) -> int:
    if isinstance(encoded, Tokens):
        return len(encoded.input_ids)
    if isinstance(encoded, Comparison):
        return len(encoded.chosen_ids) + len(encoded.rejected_ids)
    return 2 * len(encoded.prompt_ids) + len(encoded.chosen_ids) + len(encoded.rejected_ids)
