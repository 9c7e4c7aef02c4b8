"""The process that converts: ``python -m ayllu.actors.serving.convert CHECKPOINT BASE TARGET KIND``.

A process of its own: it takes memory and a core for seconds, can be killed, and what it reads comes from others. It ends in
one line of JSON, a `Converted` or an error.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Literal

import msgspec

from ...schemas import AylluError, EngineError, encode
from ...schemas.errors import ErrorInfo

NICENESS = 10
"""Those who ask models come first."""
Conversion = Literal["adapter", "merge", "model"]


class Converted(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a conversion ended.

    Attributes:
        merged: whether the file is a whole model, rather than an adapter.
        error: why there is no file.
    """

    merged: bool = False
    error: ErrorInfo | None = None


def convert(checkpoint: Path, base: Path, target: Path, kind: Conversion) -> bool:
    """Write a checkpoint as GGUF, and flush it.

    Returns:
        whether it is a whole model, rather than an adapter.

    Raises:
        InvalidRequest: the checkpoint is damaged, or does not fit the base.
        Unsupported: it needs something that cannot be represented.
        EngineError: the disk is full, or there is too little memory.
    """
    from .conversions import convert_adapter, convert_whole
    from .gguf_files import BaseFile

    try:
        opened = BaseFile(base)
        whole = True
        if kind == "model":
            convert_whole(checkpoint, opened, target)
        else:
            whole = convert_adapter(checkpoint, opened, target, merge=kind == "merge")
        with target.open("rb") as file:
            os.fsync(file.fileno())
    except (OSError, MemoryError) as error:
        raise EngineError(f"the conversion failed: {error}") from error
    return whole


def main(arguments: list[str]) -> int:
    """Convert as the command line says; print how it ended."""
    warnings.simplefilter("ignore")  # Of numpy, about values that are checked afterwards.
    os.nice(NICENESS)
    checkpoint, base, target, kind = arguments
    try:
        merged = convert(
            Path(checkpoint), Path(base), Path(target), msgspec.convert(kind, Conversion)
        )
    except AylluError as error:
        sys.stdout.write(encode(Converted(error=error.info)).decode() + "\n")
        return 1
    sys.stdout.write(encode(Converted(merged)).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
