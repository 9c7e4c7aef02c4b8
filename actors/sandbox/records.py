"""What is said to the first process of a sandbox, and what it says; the formats are those of `inside`."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ...schemas import InvalidRequest, TooLarge
from . import inside
from .inside import DISK, EXITED, FILE, LEFT_OUT, MEMORY, RECORD
from .outcome import How, Limits

PAGE = 4096
MAX_NAME = 1024
"""Characters of a path."""
_HOW: dict[bytes, How] = {EXITED: "exited", MEMORY: "memory", DISK: "disk"}


@dataclass(slots=True)
class Report:
    """What the first process said: it is no more to be trusted than the code.

    Attributes:
        how: how the code ended.
        status: its exit status, where it ended by itself.
        files: the files that it left.
        left_out: the paths of some that are not among them.
        left_out_count: how many there are of these.
    """

    how: How
    status: int
    files: dict[str, bytes] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    left_out_count: int = 0


def check_files(files: Mapping[str, bytes], limits: Limits) -> None:
    """See to it that files can be laid out.

    Raises:
        InvalidRequest: a path is none that stays in the folder, or is a file's and a folder's at once.
        TooLarge: they do not fit into the sandbox.
    """
    folders: set[str] = set()
    for name in files:
        if not _is_plain(name):
            raise InvalidRequest(f"{name!r} is no path within a folder")
        folders.update(str(folder) for folder in PurePosixPath(name).parents[:-1])
    if both := folders & files.keys():
        raise InvalidRequest(f"{min(both)!r} is a file and a folder at once")
    size = sum(-(-len(content) // PAGE) * PAGE for content in files.values())
    if size > limits.disk_bytes or len(files) + len(folders) > limits.disk_files:
        raise TooLarge(
            f"the code and its files do not fit into {limits.disk_bytes} bytes and {limits.disk_files} files"
        )


def _is_plain(name: str) -> bool:
    """Tell whether a text is the path of a file in a folder, written in the one usual way."""
    path = PurePosixPath(name)
    return (
        0 < len(name) <= MAX_NAME
        and str(path) == name
        and not path.is_absolute()
        and ".." not in path.parts
        and name != "."
        and all(len(part.encode(errors="replace")) <= 255 for part in path.parts)
        and name.isprintable()
    )


def request(files: Mapping[str, bytes]) -> bytes:
    """Return what is to be said to the first process."""
    parts: list[bytes] = []
    for name, content in files.items():
        encoded = name.encode()
        parts += (RECORD.pack(FILE, len(encoded), len(content)), encoded, content)
    return b"".join([*parts, RECORD.pack(inside.END, 0, 0)])


def max_report(limits: Limits) -> int:
    """Return how long a report can be, in bytes."""
    records = limits.disk_files + inside.MAX_LEFT_OUT + 3
    return limits.file_bytes + inside.MAX_NAMES + records * RECORD.size


def read_report(data: bytes) -> Report | None:
    """Return the report that was read to its end, or None where it breaks off or is nonsense."""
    report = Report("exited", 0)
    left_out: list[str] = []
    position = 0
    try:
        while True:
            kind, length, number = RECORD.unpack_from(data, position)
            position += RECORD.size
            name = data[position : position + length].decode()
            position += length
            if kind == FILE:
                content = data[position : position + number]
                position += number
                if number < 0 or len(content) != number:
                    return None
                if _is_plain(name):
                    report.files[name] = content
                else:
                    left_out.append(name)
                    report.left_out_count += 1
            elif kind == LEFT_OUT and name:
                left_out.append(name)
            elif kind == LEFT_OUT:
                report.left_out_count += max(0, number)
            else:
                report.how, report.status = _HOW[kind], number
                break
    except (struct.error, UnicodeDecodeError, KeyError):
        return None
    report.left_out = tuple(
        name if _is_plain(name) else ascii(name[:MAX_NAME])
        for name in left_out[: inside.MAX_LEFT_OUT]
    )
    return report if position == len(data) else None
