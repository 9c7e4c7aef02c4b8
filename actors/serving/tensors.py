"""Weights in safetensors files, as float32 arrays that are read when they are asked for; needs no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from ...schemas import InvalidRequest, Unsupported

Array = NDArray[np.float32]

_TYPES: dict[str, str] = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2"}


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    offset: int
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
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InvalidRequest(f"{path.name} is damaged: {error}") from error
    if doubles := names & known.keys():
        raise InvalidRequest(f"{path.name} has {min(doubles)}, which another file has too")
    return {
        name: _Place(
            path,
            8 + length + header[name]["data_offsets"][0],
            header[name]["dtype"],
            tuple(header[name]["shape"]),
        )
        for name in names
    }
