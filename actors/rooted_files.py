"""Files that users name by ``file://`` addresses: only those below configured folders, whatever links and odd names are there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from ..schemas import InvalidRequest, NotFound, PermissionDenied, TooLarge


class RootedFiles:
    """The files below some folders.

    Args:
        roots: the folders.
        setting: where they are configured, for messages.
    """

    def __init__(self, roots: Sequence[str], setting: str) -> None:
        self._roots = [Path(root).expanduser().resolve() for root in roots]
        self._setting = setting

    def resolve(self, url: str) -> Path:
        """Return the file or folder of a ``file://`` address.

        Raises:
            InvalidRequest: it is no address of a file.
            NotFound: there is none.
            PermissionDenied: it is not under the configured roots.
        """
        path = _path_of(url)
        try:
            path = path.resolve()
        except (OSError, RuntimeError) as error:
            raise InvalidRequest("the address is not that of a file") from error
        # First this: whether a file is there is nobody's business outside of the roots.
        if not any(path.is_relative_to(root) for root in self._roots):
            raise PermissionDenied(
                f"the file is not under the configured roots ({self._setting}); small files can be sent as data: URLs"
            )
        try:
            path.stat()
        except OSError as error:
            raise NotFound(f"the file cannot be read: {error.strerror}") from error
        return path

    @contextmanager
    def open(self, url: str, max_bytes: int) -> Iterator[BinaryIO]:
        """Open the file of a ``file://`` address. It may block for as long as the disk does.

        Raises:
            InvalidRequest: it is no regular file, or cannot be read.
            NotFound: there is none.
            PermissionDenied: it is not under the configured roots.
            TooLarge: it is over a limit; it may grow while it is read.
        """
        path = self.resolve(url)
        try:
            # Neither a link that was put in its place since, nor a pipe, which would be waited for.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            source = open(os.open(path, flags), "rb")  # noqa: PTH123, SIM115 - a descriptor
        except OSError as error:
            raise InvalidRequest(f"the file cannot be read: {error.strerror}") from error
        with source:
            found = os.fstat(source.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise InvalidRequest("the address is not that of a file")
            if found.st_size > max_bytes:
                raise TooLarge(f"the content has more than {max_bytes} bytes, the limit")
            # Nor a folder above it that is now a link to elsewhere.
            if not os.path.samestat(found, self.resolve(url).stat()):
                raise PermissionDenied("the file was replaced while it was opened")
            yield source


def _path_of(url: str) -> Path:
    """Return the path that a ``file://`` address names.

    Raises:
        InvalidRequest: it names none.
    """
    wrong = (
        "the address is not that of a file on this host: file:///PATH, with ? and # as %3F and %23"
    )
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise InvalidRequest(wrong) from error
    path = Path(unquote(parts.path))
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or "?" in url or "#" in url:
        raise InvalidRequest(wrong)
    if not path.is_absolute() or "\0" in str(path):
        raise InvalidRequest(wrong)
    return path
