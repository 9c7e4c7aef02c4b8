"""Snapshots: what a replica keeps on its disk so that it need not read the whole log again.

    <folder>/lock            held by the process that works here
    <folder>/manifest.json   which log, up to which entry, when; the files of each bank with their digests
    <folder>/kept/           those files: tables and graph of each bank; never changed, only replaced by others
    <folder>/live/           tables in use; worthless after a crash, and removed at the next start

Only what the manifest's digests confirm is used. Everything here blocks and runs in threads.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import msgspec

from ...bus.server import write_private
from ...bus.subjects import encode_token
from ...schemas import AylluError, InvalidRequest, Unavailable, decode, encode
from .bank import Bank
from .index import BankIndex
from .log import MARKER_SECONDS, BankSettings
from .store import Store

log = logging.getLogger(__name__)

STALE_SECONDS = MARKER_SECONDS / 2
"""The age from which on a state is not trusted: markers of what was deleted since may be gone."""
MAX_REPLICAS = 64
BLOCK = 1 << 20


class KeptFile(msgspec.Struct, frozen=True):
    """A file of a snapshot: its name in ``kept`` and the hexadecimal digest of its content."""

    name: str
    sha256: str


class KeptBank(msgspec.Struct, frozen=True):
    """A bank of a snapshot."""

    uuid: str
    name: str
    settings: BankSettings
    tables: KeptFile
    graph: KeptFile


class Manifest(msgspec.Struct, frozen=True):
    """A snapshot: the banks as they were at a sequence of a log, at a time in seconds since the epoch."""

    log: str
    sequence: int
    time: float
    banks: list[KeptBank]


@contextmanager
def own_folder(root: Path) -> Iterator[Path]:
    """Hold a folder that no other process works in, the first free of ``<root>/0``, ``<root>/1``, ...

    Raises:
        Unavailable: all are taken.
    """
    for number in range(MAX_REPLICAS):
        folder = root / str(number)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            yield folder
            return
    raise Unavailable(f"{MAX_REPLICAS} memory actors work in one data directory")


class Snapshots:
    """The snapshot in one folder.

    Args:
        folder: a folder that this process holds.
    """

    def __init__(self, folder: Path) -> None:
        self._kept = folder / "kept"
        self._live = folder / "live"
        self._manifest = folder / "manifest.json"
        self._banks: dict[str, KeptBank] = {}
        shutil.rmtree(self._live, ignore_errors=True)
        for path in (self._kept, self._live):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def live_path(self, bank: str) -> Path:
        """Return a new file for the tables of a bank."""
        return self._live / f"{encode_token(bank)[:64]}-{uuid4().hex}.sqlite"

    def restore(self, log_id: str, last: int) -> tuple[int, dict[str, Bank]]:
        """Return the sequence and the banks of the snapshot, or 0 and none where there is no good one.

        Args:
            log_id: which log it must be of.
            last: the last sequence of the log.
        """
        try:
            manifest = decode(self._manifest.read_bytes(), Manifest)
        except FileNotFoundError:
            return 0, {}
        except (OSError, AylluError) as error:
            log.warning("the snapshot's manifest cannot be read, the log is read anew: %s", error)
            return 0, {}
        age = time.time() - manifest.time
        if manifest.log != log_id or manifest.sequence > last or not 0 <= age <= STALE_SECONDS:
            log.warning("the snapshot is of another log, or too old: the log is read anew")
            return 0, {}
        banks: dict[str, Bank] = {}
        for kept in manifest.banks:
            try:
                banks[kept.uuid] = self._open(kept)
            except (OSError, ValueError) as error:
                log.warning("the snapshot of a bank is damaged, the log is read anew: %s", error)
                for bank in banks.values():
                    bank.store.close()
                self._banks.clear()
                return 0, {}
        return manifest.sequence, banks

    def _open(self, kept: KeptBank) -> Bank:
        path = self.live_path(kept.uuid)
        _copy(self._kept / kept.tables.name, path, kept.tables.sha256)
        dimension = kept.settings.dimension
        bank = Bank(
            kept.uuid, kept.name, kept.settings, Store(path, dimension), BankIndex(dimension)
        )
        graph: Path | None = self._kept / kept.graph.name
        try:
            if graph is not None and _digest(graph) != kept.graph.sha256:
                raise InvalidRequest("its digest is another")
            bank.load(graph)
        except (OSError, AylluError) as error:
            # The graph can be built from the tables.
            log.warning("the graph of a bank is damaged and built anew: %s", error)
            bank.index = BankIndex(dimension)
            bank.load(None)
        bank.changes = 0
        self._banks[kept.uuid] = kept
        return bank

    def keep(self, bank: Bank) -> None:
        """Write the files of a bank (a read of it), if it has changed since."""
        if bank.uuid in self._banks and not bank.changes:
            return
        stem = f"{encode_token(bank.uuid)[:64]}-{uuid4().hex}"
        tables, graph = f"{stem}.sqlite", f"{stem}.graph"
        try:
            digest = _copy(bank.store.path, self._kept / tables)
            bank.index.save(self._kept / graph)
        except BaseException:
            for name in (tables, graph):
                (self._kept / name).unlink(missing_ok=True)
            raise
        self._banks[bank.uuid] = KeptBank(
            bank.uuid,
            bank.name,
            bank.settings,
            KeptFile(tables, digest),
            KeptFile(graph, _digest(self._kept / graph)),
        )
        bank.changes = 0

    def forget(self, bank: str) -> None:
        """A bank was dropped, or created anew: its files are no longer of use."""
        self._banks.pop(bank, None)

    def commit(self, log_id: str, sequence: int) -> None:
        """Make what was kept the snapshot at a sequence, and remove files of older ones."""
        manifest = Manifest(log_id, sequence, time.time(), list(self._banks.values()))
        write_private(self._manifest, encode(manifest).decode())
        named = {file.name for bank in manifest.banks for file in (bank.tables, bank.graph)}
        for path in self._kept.iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)


def _copy(source: Path, target: Path, sha256: str | None = None) -> str:
    """Copy a file to the disk and return its digest.

    Raises:
        ValueError: what was copied has another digest than ``sha256``.
    """
    digest = hashlib.sha256()
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(BLOCK):
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    if sha256 is not None and digest.hexdigest() != sha256:
        raise ValueError(f"{source.name} has another digest than its manifest says")
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
