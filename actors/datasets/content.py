"""The content of datasets: found where its address says, and copied to where it does not change."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, BinaryIO
from urllib.parse import unquote, urlsplit

import anyio
import anyio.to_thread

from ...schemas import InvalidRequest, NotFound, Overloaded, PermissionDenied, TooLarge
from ..attachments import data_url
from ..fetching import Limits, check_url, fetching
from .formats import format_of
from .settings import DatasetsConfig

BLOCK = 1 << 20
_VAGUE = frozenset(
    ("", "text/plain", "application/octet-stream", "binary/octet-stream", "application/binary")
)
"""Media types of servers that do not know what they have."""


@dataclass(frozen=True, slots=True)
class Content:
    """A content that does not change.

    Attributes:
        path: where it is.
        fingerprint: ``sha256:`` and the hexadecimal digest of its bytes.
        bytes: its size.
        format: how it is written, see `formats`.
    """

    path: Path
    fingerprint: str
    bytes: int
    format: str


class ContentStore:
    """Copies of contents, each under its digest.

    Args:
        folder: where copies are kept.
        config: from where contents may come.
    """

    def __init__(self, folder: Path, config: DatasetsConfig) -> None:
        self._folder = folder
        self._config = config
        self._roots = [Path(root).expanduser().resolve() for root in config.roots]

    def check(self, url: str) -> None:
        """Refuse an address that can never be read; nothing is fetched.

        Raises:
            InvalidRequest: it cannot be read as an address, or its format cannot be told.
            NotFound: there is no such file.
            PermissionDenied: the file is not under the configured roots.
        """
        scheme = url.partition(":")[0].lower()
        if scheme == "file":
            if not self.resolve_file(url).is_file():
                raise InvalidRequest("the address is that of a folder, not of a file")
            format_of(url)
        elif scheme == "data":
            format_of(url)
        else:
            check_url(url)

    def resolve_file(self, url: str) -> Path:
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
                "the file is not under the configured roots ([datasets] roots); small files can be sent as data: URLs"
            )
        try:
            path.stat()
        except OSError as error:
            raise NotFound(f"the file cannot be read: {error.strerror}") from error
        return path

    async def fetch(self, url: str) -> Content:
        """Copy a content to where it does not change; what is there already is not copied again.

        Raises:
            InvalidRequest: see `check`.
            PermissionDenied: it is where nobody may read.
            TooLarge: it is over the limit.
            Unavailable: its server does not answer.
            Overloaded: the disk is full.
        """
        scheme = url.partition(":")[0].lower()
        if scheme == "file":
            return await anyio.to_thread.run_sync(self._copy_file, url, abandon_on_cancel=False)
        if scheme == "data":
            return await anyio.to_thread.run_sync(self._copy_data, url)
        return await self._download(url)

    def _copy_file(self, url: str) -> Content:
        with self._open_file(url) as source, self._new_copy() as copy:
            while block := source.read(BLOCK):
                copy.write(block)
            return copy.keep(format_of(url))

    @contextmanager
    def _open_file(self, url: str) -> Iterator[BinaryIO]:
        path = self.resolve_file(url)
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
            if found.st_size > self._config.max_bytes:
                raise TooLarge(
                    f"the content has more than {self._config.max_bytes} bytes, the limit"
                )
            # Nor a folder above it that is now a link to elsewhere.
            if not os.path.samestat(found, self.resolve_file(url).stat()):
                raise PermissionDenied("the file was replaced while it was opened")
            yield source

    def _copy_data(self, url: str) -> Content:
        with self._new_copy() as copy:
            copy.write(data_url(url, "content_url"))
            return copy.keep(format_of(url))

    async def _download(self, url: str) -> Content:
        config = self._config
        limits = Limits(config.max_bytes, config.timeout, config.private_hosts)
        async with fetching(url, limits) as fetched:
            if fetched.media_type not in _VAGUE:
                format_of("", fetched.media_type)  # A page, say, where a table is wanted.
            format_ = format_of(url, fetched.media_type)
            async with self._new_copy_async() as copy:
                async for block in fetched.body:
                    await anyio.to_thread.run_sync(copy.write, block)
                return await anyio.to_thread.run_sync(copy.keep, format_)

    @contextmanager
    def _new_copy(self) -> Iterator[_Copy]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=self._folder, prefix="new-", delete=False) as file:
                try:
                    yield _Copy(file, self._folder, self._config.max_bytes)
                finally:
                    Path(file.name).unlink(missing_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Overloaded("there is no room on the disk for the content") from error
            raise InvalidRequest(f"the content cannot be read: {error.strerror}") from error

    @asynccontextmanager
    async def _new_copy_async(self) -> AsyncIterator[_Copy]:
        with self._new_copy() as copy:
            yield copy


class _Copy:
    """A copy that is being written."""

    def __init__(self, file: IO[bytes], folder: Path, max_bytes: int) -> None:
        self._file = file
        self._folder = folder
        self._max_bytes = max_bytes
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, block: bytes) -> None:
        self._size += len(block)
        if self._size > self._max_bytes:
            raise TooLarge(f"the content has more than {self._max_bytes} bytes, the limit")
        self._digest.update(block)
        self._file.write(block)

    def keep(self, format_: str) -> Content:
        """Give the copy its name, once it is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        digest = self._digest.hexdigest()
        path = self._folder / digest
        if not path.exists():
            Path(self._file.name).rename(path)
        return Content(path, f"sha256:{digest}", self._size, format_)


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
