"""The content of datasets: found where its address says, and copied to where it does not change."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, BinaryIO, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread

from ...schemas import (
    Conflict,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    TooLarge,
)
from ..attachments import data_url
from ..fetching import Limits, check_url, fetching
from ..rooted_files import RootedFiles
from .formats import format_of
from .settings import DatasetsConfig

T = TypeVar("T")

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
        self._files = RootedFiles(config.roots, "[datasets] roots")

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
        return self._files.resolve(url)

    async def fetch(self, url: str) -> Content:
        """Copy a content to where it does not change; what is there already is not copied again.

        Raises:
            InvalidRequest: see `check`.
            PermissionDenied: it is where nobody may read.
            TooLarge: it is over the limit.
            Unavailable: its server does not answer.
            Overloaded: the disk is full.
            DeadlineExceeded: it took too long.
        """
        async with self._copied(url) as (copy, format_):
            return await anyio.to_thread.run_sync(copy.keep, format_)

    @asynccontextmanager
    async def reading(self, url: str) -> AsyncIterator[Content]:
        """Hold a content while it is read once: a file where it lies, all else as a copy that goes in the end.

        Raises:
            Conflict: in the end, the file was not what it had been.
            AylluError: as `fetch`.
        """
        if url.partition(":")[0].lower() != "file":
            async with self._copied(url) as (copy, format_):
                yield await anyio.to_thread.run_sync(copy.content, format_)
            return
        content, state = await self._in_time(self._look_at, url)
        yield content
        if _state(content.path.stat()) != state:
            raise Conflict("the file changed while it was read", retryable=True)

    async def fingerprint(self, url: str) -> str:
        """Return the fingerprint of a content.

        Raises:
            AylluError: as `fetch`.
        """
        async with self.reading(url) as content:
            return content.fingerprint

    @asynccontextmanager
    async def _copied(self, url: str) -> AsyncIterator[tuple[_Copy, str]]:
        """Yield a whole copy, and its format."""
        scheme = url.partition(":")[0].lower()
        with self._new_copy() as copy:
            if scheme == "file":
                await self._in_time(self._copy_file, url, copy)
                yield copy, format_of(url)
            elif scheme == "data":
                await anyio.to_thread.run_sync(copy.write, data_url(url, "content_url"))
                yield copy, format_of(url)
            else:
                yield copy, await self._download(url, copy)

    async def _in_time(self, function: Callable[..., T], *arguments: object) -> T:
        """Run a function that looks now and then whether it was given up."""
        try:
            with anyio.fail_after(self._config.timeout):
                return await anyio.to_thread.run_sync(function, *arguments)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the content was not read within {self._config.timeout:g} s"
            ) from error

    def _look_at(self, url: str) -> tuple[Content, tuple[int, ...]]:
        digest, size = hashlib.sha256(), 0
        with self._files.open(url, self._config.max_bytes) as source:
            state = _state(os.fstat(source.fileno()))
            for block in _blocks(source):
                digest.update(block)
                size += len(block)
            if size > self._config.max_bytes:
                raise TooLarge(_too_large(self._config.max_bytes))
        path = self.resolve_file(url)
        return Content(path, f"sha256:{digest.hexdigest()}", size, format_of(url)), state

    def _copy_file(self, url: str, copy: _Copy) -> None:
        with self._files.open(url, self._config.max_bytes) as source:
            for block in _blocks(source):
                copy.write(block)

    async def _download(self, url: str, copy: _Copy) -> str:
        """Write what a server sends, and return its format."""
        config = self._config
        limits = Limits(config.max_bytes, config.timeout, config.private_hosts)
        async with fetching(url, limits) as fetched:
            if fetched.media_type not in _VAGUE:
                format_of("", fetched.media_type)  # A page, say, where a table is wanted.
            format_ = format_of(url, fetched.media_type)
            async for block in fetched.body:
                await anyio.to_thread.run_sync(copy.write, block)
        return format_

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
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise Overloaded("there is no room on the disk for the content") from error
            raise InvalidRequest(f"the content cannot be read: {error.strerror}") from error


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
            raise TooLarge(_too_large(self._max_bytes))
        self._digest.update(block)
        self._file.write(block)

    def content(self, format_: str) -> Content:
        """Return what was written, where it lies as long as nobody keeps it."""
        self._file.flush()
        digest = f"sha256:{self._digest.hexdigest()}"
        return Content(Path(self._file.name), digest, self._size, format_)

    def keep(self, format_: str) -> Content:
        """Give the copy its name, once it is on the disk."""
        made = self.content(format_)
        os.fsync(self._file.fileno())
        path = self._folder / made.fingerprint.removeprefix("sha256:")
        if not path.exists():
            made.path.rename(path)
        return replace(made, path=path)


def _blocks(source: BinaryIO) -> Iterator[bytes]:
    while block := source.read(BLOCK):
        anyio.from_thread.check_cancelled()
        yield block


def _state(found: os.stat_result) -> tuple[int, ...]:
    """Return what changes with a file."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _too_large(limit: int) -> str:
    return f"the content has more than {limit} bytes, the limit"
