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

PRIVATE = 0o077
"""What nobody else may do with what is made: it was trained on what may be private."""
NICENESS = 10
"""Those who ask models come first."""
Conversion = Literal["adapter", "merge", "model"]


class Converted(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a conversion ended.

    Attributes:
        merged: whether it made a whole model, rather than an adapter.
        error: why it made nothing.
    """

    merged: bool = False
    error: ErrorInfo | None = None


def convert(checkpoint: Path, base: Path, target: Path, kind: Conversion) -> bool:
    """Write what engines load of a checkpoint, and flush it: on a base in GGUF a file of GGUF, on a folder a folder.

    Returns:
        whether it is a whole model, rather than an adapter.

    Raises:
        InvalidRequest: the checkpoint is damaged, or does not fit the base.
        Unsupported: it needs something that cannot be represented.
        EngineError: the disk is full, or there is too little memory.
    """
    try:
        if base.is_dir():
            whole = _to_folder(checkpoint, base, target, kind)
        else:
            whole = _to_gguf(checkpoint, base, target, kind)
        for path in (target, *target.rglob("*")):
            _flush(path)
    except OSError as error:  # Its text may have the path.
        raise EngineError(
            f"the conversion failed: {error.strerror or 'a file is damaged'}"
        ) from error
    except MemoryError as error:
        raise EngineError("the conversion failed: there is too little memory") from error
    return whole


def _to_gguf(checkpoint: Path, base: Path, target: Path, kind: Conversion) -> bool:
    from .conversions import convert_adapter, convert_whole
    from .gguf_files import BaseFile

    opened = BaseFile(base)
    if kind == "model":
        convert_whole(checkpoint, opened, target)
        return True
    return convert_adapter(checkpoint, opened, target, merge=kind == "merge")


def _to_folder(checkpoint: Path, base: Path, target: Path, kind: Conversion) -> bool:
    from .folder_conversions import convert_whole, keep_adapter, merge_adapter
    from .folders import BaseFolder

    convert = {"adapter": keep_adapter, "merge": merge_adapter, "model": convert_whole}
    convert[kind](checkpoint, BaseFolder(base), target)
    return kind != "adapter"


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def main(arguments: list[str]) -> int:
    """Convert as the command line says; print how it ended."""
    warnings.simplefilter("ignore")  # Of numpy, about values that are checked afterwards.
    os.nice(NICENESS)
    os.umask(PRIVATE)
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
