"""The content of datasets: found where its address says, and copied to where it does not change."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO
from urllib.parse import unquote, urlsplit

import anyio
import anyio.to_thread

from ...schemas import InvalidRequest, NotFound, Overloaded, PermissionDenied, TooLarge
from ..attachments import data_url
from ..fetching import Limits, check_url, fetching
from .formats import format_of
from .settings import DatasetsConfig

BLOCK = 1 << 20


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
        parts = urlsplit(url)
        if parts.scheme != "file" or parts.netloc not in ("", "localhost") or "\0" in unquote(url):
            raise InvalidRequest("the address is not that of a file on this host: file:///PATH")
        path = Path(unquote(parts.path))
        try:
            path = path.resolve()
        except (OSError, RuntimeError) as error:
            raise InvalidRequest("the address is not that of a file") from error
        # First this: whether a file is there is nobody's business outside of the roots.
        if not any(path.is_relative_to(root) for root in self._roots):
            raise PermissionDenied(
                "the file is not under the configured roots ([datasets] roots); small files can be sent as data: URLs"
            )
        if not path.exists():
            raise NotFound("there is no such file")
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
        path = self.resolve_file(url)
        with path.open("rb") as source, self._new_copy() as copy:
            while block := source.read(BLOCK):
                copy.write(block)
            return copy.keep(format_of(url))

    def _copy_data(self, url: str) -> Content:
        with self._new_copy() as copy:
            copy.write(data_url(url, "content_url"))
            return copy.keep(format_of(url))

    async def _download(self, url: str) -> Content:
        config = self._config
        limits = Limits(config.max_bytes, config.timeout, config.private_hosts)
        async with fetching(url, limits) as fetched:
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
