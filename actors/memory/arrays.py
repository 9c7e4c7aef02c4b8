"""Arrays that grow at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEAST = 8


def room(array: NDArray[Any], size: int, fill: object = None) -> NDArray[Any]:
    """Return the array if it has ``size`` rows, or a copy with half as many again; ``fill`` goes into new rows."""
    if len(array) >= size:
        return array
    grown = np.empty((max(LEAST, size, len(array) * 3 // 2), *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    if fill is not None:
        grown[len(array) :] = fill
    return grown


class Buffer:
    """A one-dimensional array that values are appended to."""

    __slots__ = ("_data", "_size")

    def __init__(self, dtype: Any, values: ArrayLike = ()) -> None:
        self._data: NDArray[Any] = np.array(values, dtype)
        self._size = len(self._data)

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> NDArray[Any]:
        """What was appended, as a view: valid until the next change."""
        return self._data[: self._size]

    @property
    def nbytes(self) -> int:
        """The bytes that are set aside."""
        return self._data.nbytes

    def extend(self, values: ArrayLike) -> None:
        """Append values."""
        new = np.asarray(values, self._data.dtype)
        end = self._size + len(new)
        self._data = room(self._data, end)
        self._data[self._size : end] = new
        self._size = end
