"""The metadata of a bank's documents in columns, where a filter becomes a mask by vector operations.

A column has one row for each value that a document has under its key (a list has one for each element): 13 bytes a row,
so memory grows with what the documents hold, however many keys there are. The first `MAX_COLUMNS` keys have columns of
their own, all others share one with 4 bytes more a row, which is read as a whole. Texts are kept once for the bank, and cut
where no filter can tell the difference. Removing a document only forgets its number; `compact` drops what is left of it.

Metadata comes from JSON: text has no lone surrogates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.dtypes import StringDType
from numpy.typing import NDArray

from ...schemas.filters import (
    MAX_TEXT,
    And,
    Eq,
    Exists,
    Filter,
    Gt,
    In,
    Lt,
    Ne,
    Not,
    Or,
    Scalar,
    number,
    paths,
    scalars,
)
from .arrays import Buffer

MAX_COLUMNS = 256
OTHER, TRUTH, INTEGER, FLOAT, TEXT = range(5)
KIND, ELEMENT = 7, 8
"""The bits of a row's kind, and the bit of those that stand in a list."""
_INT64 = 1 << 63

Mask = NDArray[np.bool_]


class Column:
    """Rows of values: the number of the document, the kind, and 64 bits of value (a text's are its code)."""

    __slots__ = ("docs", "keys", "kinds", "values")

    def __init__(self, *, shared: bool = False) -> None:
        self.docs = Buffer(np.int32)
        self.kinds = Buffer(np.uint8)
        self.values = Buffer(np.int64)
        self.keys = Buffer(np.int32) if shared else None

    def extend(self, rows: Sequence[tuple[int, int, int, int]]) -> None:
        """Append rows of document, kind, value and code of the key."""
        docs, kinds, values, keys = zip(*rows, strict=True)
        self.docs.extend(docs)
        self.kinds.extend(kinds)
        self.values.extend(values)
        if self.keys is not None:
            self.keys.extend(keys)

    def keep(self, rows: Mask) -> None:
        """Drop all other rows."""
        for name in self.__slots__:
            buffer = getattr(self, name)
            if buffer is not None:
                kept = buffer.values[rows]
                setattr(self, name, Buffer(kept.dtype, kept))

    @property
    def nbytes(self) -> int:
        """The bytes that the rows take."""
        return sum(b.nbytes for b in (self.docs, self.kinds, self.values, self.keys) if b)


class Texts:
    """Texts and their codes."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._codes = {text: code for code, text in enumerate(texts)}
        self._ordered: Buffer | None = None

    def __len__(self) -> int:
        return len(self._codes)

    def code(self, text: str) -> int:
        """Return the code of a text, a new one if need be (a write)."""
        found = self._codes.get(text)
        if found is None:
            found = self._codes[text] = len(self._codes)
            if self._ordered is not None:
                self._ordered.extend([_comparable(text)])
        return found

    def known(self, text: str) -> int | None:
        """Return the code of a text that was seen."""
        return self._codes.get(text)

    def compare(self, order: Callable[[Any, Any], Any], bound: str) -> Mask:
        """Return which codes stand for texts in this order to another."""
        if self._ordered is None:
            # From here on new texts are kept comparable, too; two readers that come at once make the same.
            self._ordered = Buffer(StringDType(), [_comparable(text) for text in self._codes])
        found: Mask = order(self._ordered.values, _comparable(bound))
        return found

    def only(self, used: Mask) -> Texts:
        """Return those of some codes, numbered anew in the same order."""
        return Texts(text for text, code in self._codes.items() if used[code])

    @property
    def nbytes(self) -> int:
        """About the bytes that the texts take."""
        texts = sum(49 + len(text) + 100 for text in self._codes)
        return texts + (self._ordered.nbytes if self._ordered is not None else 0)


class Columns:
    """The metadata of documents, which are numbered in the order of their coming.

    `mask` and the properties are reads, which may run at once in threads; all else writes.
    """

    def __init__(self) -> None:
        self._columns: dict[str, Column] = {}
        self._shared = Column(shared=True)
        self._keys = Texts()
        self._texts = Texts()
        self._count = 0

    @property
    def nbytes(self) -> int:
        """About the bytes that the metadata take."""
        columns = sum(column.nbytes + 400 for column in self._columns.values())
        return columns + self._shared.nbytes + self._keys.nbytes + self._texts.nbytes

    def add(self, documents: Iterable[Mapping[str, Any]]) -> None:
        """Append documents, which get the next numbers."""
        rows: dict[str, list[tuple[int, int, int, int]]] = {}
        for metadata in documents:
            for path, value in paths(metadata).items():
                rows.setdefault(path, []).extend(
                    (self._count, kind, bits, 0) for kind, bits in self._encoded(value)
                )
            self._count += 1
        for path, found in rows.items():
            column = self._columns.get(path)
            if (
                column is None
                and len(self._columns) < MAX_COLUMNS
                and self._keys.known(path) is None
            ):
                column = self._columns[path] = Column()
            if column is not None:
                column.extend(found)
            else:
                key = self._keys.code(path)
                self._shared.extend([(doc, kind, bits, key) for doc, kind, bits, _ in found])

    def _encoded(self, value: object) -> Iterable[tuple[int, int]]:
        is_list = isinstance(value, list | tuple)
        rows = {self._row(one, ELEMENT if is_list else 0) for one in scalars(value)}
        return rows or {(OTHER, 0)}

    def _row(self, value: Scalar, flag: int) -> tuple[int, int]:
        if isinstance(value, str):
            return TEXT | flag, self._texts.code(value[: MAX_TEXT + 1])
        if isinstance(value, bool):
            return TRUTH | flag, int(value)
        if isinstance(value, int):
            return INTEGER | flag, value
        return FLOAT | flag, int(np.float64(value).view(np.int64))

    def compact(self, alive: Mask) -> None:
        """Drop documents; those that stay are numbered anew, in the same order."""
        numbers = np.cumsum(alive, dtype=np.int32) - np.int32(1)
        used = np.zeros(len(self._texts), np.bool_)
        keys = np.zeros(len(self._keys), np.bool_)
        columns = [*self._columns.values(), self._shared]
        for column in columns:
            column.keep(alive[column.docs.values])
            column.docs = Buffer(np.int32, numbers[column.docs.values])
            used[column.values.values[column.kinds.values & KIND == TEXT]] = True
        codes = np.cumsum(used, dtype=np.int64) - 1
        self._texts = self._texts.only(used)
        for column in columns:
            texts = column.kinds.values & KIND == TEXT
            column.values.values[texts] = codes[column.values.values[texts]]
        if self._shared.keys is not None:
            keys[self._shared.keys.values] = True
            renumbered = np.cumsum(keys, dtype=np.int32) - np.int32(1)
            self._shared.keys = Buffer(np.int32, renumbered[self._shared.keys.values])
        self._keys = self._keys.only(keys)
        self._columns = {path: column for path, column in self._columns.items() if len(column.docs)}
        self._count = int(alive.sum())

    def mask(self, wanted: Filter) -> Mask:
        """Return which documents pass a filter, by their numbers; what was removed may be among them."""
        match wanted:
            case And():
                return reduce(np.logical_and, map(self.mask, wanted.filters))
            case Or():
                return reduce(np.logical_or, map(self.mask, wanted.filters))
            case Not():
                return ~self.mask(wanted.filter)
            case Ne():
                return ~self.mask(Eq(wanted.key, wanted.value))
            case _:
                return self._tested(wanted)

    def _tested(self, test: Eq | In | Lt | Gt | Exists) -> Mask:
        found = np.zeros(self._count, np.bool_)
        rows = self._rows(test.key)
        if rows is None:
            return found
        docs, kinds, values = rows
        match test:
            case Exists():
                found[docs] = True
                return found
            case Eq():
                hits = self._same(kinds, values, (test.value,))
            case In():
                hits = self._same(kinds, values, test.values)
            case Lt():
                hits = self._ordered(kinds, values, test.value, np.less)
            case Gt():
                hits = self._ordered(kinds, values, test.value, np.greater)
        found[docs[hits]] = True
        return found

    def _rows(self, key: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None:
        column = self._columns.get(key)
        if column is not None:
            return column.docs.values, column.kinds.values, column.values.values
        code, shared = self._keys.known(key), self._shared
        if code is None or shared.keys is None:
            return None
        chosen = np.flatnonzero(shared.keys.values == code)
        return shared.docs.values[chosen], shared.kinds.values[chosen], shared.values.values[chosen]

    def _same(self, kinds: NDArray[Any], values: NDArray[Any], wanted: tuple[Scalar, ...]) -> Mask:
        """Return the rows whose value is among some."""
        sought: dict[int, list[Any]] = {TRUTH: [], INTEGER: [], FLOAT: [], TEXT: []}
        for value in scalars(wanted):
            if isinstance(value, str):
                code = self._texts.known(value)
                sought[TEXT] += [] if code is None else [code]
            elif isinstance(value, bool):
                sought[TRUTH].append(int(value))
            else:
                whole = isinstance(value, int) or (value.is_integer() and -_INT64 <= value < _INT64)
                sought[INTEGER] += [int(value)] if whole else []
                sought[FLOAT] += [float(value)] if float(value) == value else []
        hits = np.zeros(len(kinds), np.bool_)
        base = kinds & KIND
        for kind, targets in sought.items():
            if targets:
                seen = values.view(np.float64) if kind == FLOAT else values
                hits |= (base == kind) & np.isin(seen, np.array(targets, seen.dtype))
        return hits

    def _ordered(
        self, kinds: NDArray[Any], values: NDArray[Any], bound: str | float, order: np.ufunc
    ) -> Mask:
        """Return the rows whose value is less, or greater, than a bound; elements of lists never are."""
        if isinstance(bound, str):
            hits: Mask = kinds == TEXT
            hits[hits] = self._texts.compare(order, bound)[values[hits]]
            return hits
        limit = number(bound)
        integers = (kinds == INTEGER) & _integers_in_order(values, limit, order)
        floats = (kinds == FLOAT) & _floats_in_order(values, limit, order)
        found: Mask = integers | floats
        return found


def _integers_in_order(values: NDArray[Any], bound: float, order: np.ufunc) -> Mask:
    """Compare 64-bit integers with a number as mathematics does, whatever its type."""
    if isinstance(bound, float):
        if math.isnan(bound):
            return np.zeros(len(values), np.bool_)
        if not -_INT64 <= bound < _INT64:
            return np.full(len(values), (bound > 0) is (order is np.less))
        bound = math.ceil(bound) if order is np.less else math.floor(bound)
        if bound == _INT64:
            return np.full(len(values), order is np.less)
    hits: Mask = order(values, np.int64(bound))
    return hits


def _floats_in_order(values: NDArray[Any], bound: float, order: np.ufunc) -> Mask:
    """Compare floating-point numbers with a number as mathematics does, whatever its type."""
    nearest = float(bound)
    # No floating-point number lies between an integer and the one nearest to it.
    beyond = nearest < bound if order is np.less else nearest > bound
    if beyond:
        order = np.less_equal if order is np.less else np.greater_equal
    hits: Mask = order(values.view(np.float64), nearest)
    return hits


def _comparable(text: str) -> str:
    """Return a text for numpy, which stops at NUL, in the same order among its like."""
    return text.replace("\x01", "\x01\x02").replace("\0", "\x01\x01")
