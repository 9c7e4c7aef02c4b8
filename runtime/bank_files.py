"""Which files ``ayllu bank`` makes documents of, and how."""

from __future__ import annotations

import codecs
import mimetypes
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..actors.memory.texts import MAX_CHARACTERS, is_supported, text_of
from ..bus.subjects import encode_token
from ..schemas import InvalidRequest, MemoryBankDocument, TooLarge
from ..schemas.memory import Uuid
from ..schemas.wire import convert

TYPES = mimetypes.MimeTypes()
"""Python's own table: that of the machine differs from one to the next, and calls Rust and TypeScript something else."""
for _suffix, _type in (
    (".md", "text/markdown"),
    (".markdown", "text/markdown"),
    (".xhtml", "application/xhtml+xml"),
):
    TYPES.add_type(_type, _suffix)
BINARY = "application/octet-stream"
LOOKED_AT = 8192
"""How many bytes of a file of an unknown type tell whether it is text."""
NAMED = 3


@dataclass(slots=True)
class Found:
    """What is below some paths.

    Attributes:
        files: paths by the ids of their documents: relative to the folder that was given.
        hidden: how many files and folders with a name like ``.git`` were left out.
        empty: files that were left out because nothing is in them.
        foreign: files of kinds that no bank takes.
    """

    files: dict[str, Path] = field(default_factory=dict)
    hidden: int = 0
    empty: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def left_out(self) -> str:
        """Say in one line what was left out; empty where nothing was."""
        parts = [f"{self.hidden} hidden"] if self.hidden else []
        if self.empty:
            parts.append(f"{len(self.empty)} empty ({_named(self.empty)})")
        if self.foreign:
            parts.append(
                f"{len(self.foreign)} of kinds that no bank takes ({_named(self.foreign)})"
            )
        return f"left out: {', '.join(parts)}" if parts else ""


def find_files(paths: Iterable[Path]) -> Found:
    """Return the files below some paths.

    Of folders, what is hidden or empty, and files of kinds that no bank takes, are left out.

    Raises:
        InvalidRequest: there is no such path, a named file is of such a kind, or two files would have one id.
    """
    found = Found()
    for path in paths:
        if path.is_dir():
            chosen = dict(_files_below(path, found))
        elif path.is_file():
            if not is_supported(kind := mime_type_of(path)):
                raise InvalidRequest(f"{path} is {kind}, which no bank takes")
            chosen = {path.name: path}
        else:
            raise InvalidRequest(f"there is no file or folder {path}")
        for uuid, one in chosen.items():
            if uuid in found.files:
                raise InvalidRequest(
                    f"{found.files[uuid]} and {one} would both be called {uuid!r}: "
                    "give the folder above them"
                )
            found.files[uuid] = one
    return found


def _files_below(folder: Path, found: Found) -> Iterator[tuple[str, Path]]:
    for parent, folders, names in os.walk(folder):
        hidden = [name for name in (*folders, *names) if name.startswith(".")]
        found.hidden += len(hidden)
        folders[:] = sorted(set(folders).difference(hidden))
        for name in sorted(set(names).difference(hidden)):
            path = Path(parent, name)
            uuid = path.relative_to(folder).as_posix()
            if not path.is_file():  # A socket, or a link that leads nowhere.
                found.foreign.append(uuid)
            elif not path.stat().st_size:
                found.empty.append(uuid)
            elif not is_supported(mime_type_of(path)):
                found.foreign.append(uuid)
            else:
                yield uuid, path


def mime_type_of(path: Path) -> str:
    """Return the MIME type that a file's name says, or else its first bytes: text, or not."""
    known, encoding = TYPES.guess_type(path.name)
    if encoding is not None:
        return f"application/{encoding}"
    return known or ("text/plain" if _looks_like_text(path) else BINARY)


def _looks_like_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            begin = file.read(LOOKED_AT)
        codecs.getincrementaldecoder("utf-8")().decode(begin)
    except UnicodeDecodeError:
        return False
    except OSError:
        return True  # Why it cannot be read is said when it should be.
    return b"\0" not in begin


def document_of(uuid: str, path: Path) -> MemoryBankDocument:
    """Return the document that a file becomes.

    Raises:
        InvalidRequest: it cannot be read, or no bank would take it; the message names the file.
    """
    try:
        convert(uuid, Uuid)
        encode_token(uuid)
        if path.stat().st_size > 4 * MAX_CHARACTERS:
            raise TooLarge(f"a document has at most {MAX_CHARACTERS} characters")
        content, mime_type = path.read_bytes(), mime_type_of(path)
        text_of(content, mime_type)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
    except InvalidRequest as error:
        raise type(error)(f"{path}: {error.message}") from error
    return MemoryBankDocument(uuid, content, {"path": uuid}, mime_type)


def _named(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
