"""Weights in safetensors files: read when they are asked for, as float32 arrays, and written one at a time. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from ...schemas import InvalidRequest, Unsupported

Array = NDArray[np.float32]
ROTARY = "rotary_emb.inv_freq"
"""What old checkpoints have beside weights: it follows from the configuration."""

_TYPES: dict[str, str] = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2"}


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    offset: int
    bytes: int
    type: str
    shape: tuple[int, ...]


class Tensors:
    """The tensors of some safetensors files.

    Raises:
        InvalidRequest: a file is damaged, or two have a tensor of one name.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._places: dict[str, _Place] = {}
        for path in paths:
            self._places |= _places(path, known=self._places)

    @property
    def names(self) -> list[str]:
        """The names of all tensors, sorted."""
        return sorted(self._places)

    def __contains__(self, name: str) -> bool:
        """Tell whether there is a tensor of a name."""
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self._places[name].shape

    def type(self, name: str) -> str:
        """Return how a tensor is stored, as safetensors call it: ``F32``, ``BF16``..."""
        return self._places[name].type

    def raw(self, name: str) -> Any:
        """Return the bytes of a tensor as they stand in its file, which are read when they are used."""
        place = self._places[name]
        if not place.bytes:
            return np.empty(0, np.uint8)
        return np.memmap(place.path, np.uint8, "r", place.offset, (place.bytes,))

    def read(self, name: str) -> Array:
        """Return a tensor.

        Raises:
            InvalidRequest: there is none of this name, or something in it is no number.
            Unsupported: it is of a type that is none of floating point.
        """
        place = self._places.get(name)
        if place is None:
            raise InvalidRequest(f"the weights have no {name}")
        kind = _TYPES.get(place.type)
        if kind is None:
            raise Unsupported(f"{name} is of the type {place.type}; only floating point is taken")
        count = int(np.prod(place.shape))
        raw = np.fromfile(place.path, np.dtype(kind), count, offset=place.offset)
        if place.type == "BF16":  # The upper half of a float32.
            values = (raw.astype(np.uint32) << 16).view(np.float32)
        else:
            values = raw.astype(np.float32)
        if not np.isfinite(values).all():
            raise InvalidRequest(f"{name} has values that are no numbers: its training diverged")
        return values.reshape(place.shape)


def _places(path: Path, known: dict[str, _Place]) -> dict[str, _Place]:
    try:
        # The library checks all that can be wrong with a header: overlaps, gaps, lengths.
        with safetensors.safe_open(path, framework="numpy") as file:
            names = set(file.keys())
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            header: dict[str, Any] = json.loads(raw.read(length))
    except OSError as error:  # Its text has the whole path.
        raise InvalidRequest(f"{path.name} is missing, or cannot be read") from error
    except (safetensors.SafetensorError, ValueError) as error:
        raise InvalidRequest(f"{path.name} is damaged: {error}") from error
    if doubles := names & known.keys():
        raise InvalidRequest(f"{path.name} has {min(doubles)}, which another file has too")
    return {
        name: _Place(
            path,
            8 + length + header[name]["data_offsets"][0],
            header[name]["data_offsets"][1] - header[name]["data_offsets"][0],
            header[name]["dtype"],
            tuple(header[name]["shape"]),
        )
        for name in names
    }


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight to be written.

    Attributes:
        type: how it is stored, as safetensors call it.
        shape: its shape.
        bytes: how many bytes it takes.
        data: makes them.
    """

    type: str
    shape: tuple[int, ...]
    bytes: int
    data: Callable[[], Any]


_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def as_stored(name: str, tensors: Tensors) -> Stored:
    """Return a weight as it stands in its file."""
    raw = partial(tensors.raw, name)
    return Stored(tensors.type(name), tensors.shape(name), raw().nbytes, raw)


def computed(name: str, type: str, shape: tuple[int, ...], values: Callable[[], Array]) -> Stored:
    """Return a weight that is computed, and stored as floating point of a type.

    Raises:
        Unsupported: the type is none of floating point.
    """
    if type not in _SIZES:
        raise Unsupported(f"{name} is of the type {type}; only floating point is taken")
    size = math.prod(shape) * _SIZES[type]
    return Stored(type, shape, size, lambda: encoded(name, values(), type))


def encoded(name: str, values: Array, type: str) -> Any:
    """Return values as they are stored.

    Raises:
        InvalidRequest: some are no numbers, or too large for the type.
    """
    made: Any
    with np.errstate(over="ignore"):
        if type == "BF16":
            bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
            # To the nearest one, and to the even one of two.
            made = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            finite = np.isfinite(values) & ((made & 0x7F80) != 0x7F80)
        else:
            made = values.astype(f"<f{_SIZES[type]}")
            finite = np.isfinite(made)
    if not finite.all():
        raise InvalidRequest(f"{name} would have values that are no numbers")
    return np.ascontiguousarray(made).reshape(-1).view(np.uint8)


def write_safetensors(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Write weights; only one at a time is in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    with path.open("xb") as file:
        for name, tensor in tensors.items():
            begin, end = end, end + tensor.bytes
            header[name] = {
                "dtype": tensor.type,
                "shape": tensor.shape,
                "data_offsets": [begin, end],
            }
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors.values():
            file.write(memoryview(tensor.data()))
