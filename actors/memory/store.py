"""The tables of one bank: its documents, their chunks with vectors, and the words in them (FTS5, for BM25).

A file of SQLite that is made from the log and can be made again, so that nothing waits for the disk. Methods block:
they run in threads. Many may read at once, or one may write; the owner holds the lock.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from ...schemas import MemoryBankDocument
from .index import IndexedDocument
from .log import DocumentStored

SCHEMA = """
CREATE TABLE documents (
    id INTEGER PRIMARY KEY AUTOINCREMENT, uuid TEXT NOT NULL UNIQUE, mime_type TEXT NOT NULL, metadata BLOB NOT NULL,
    content BLOB NOT NULL, object TEXT
) STRICT;
CREATE TABLE chunks (
    id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL, uuid TEXT NOT NULL, text TEXT NOT NULL
) STRICT;
CREATE TABLE vectors (id INTEGER PRIMARY KEY, vector BLOB NOT NULL) STRICT;
CREATE INDEX chunks_of ON chunks (document);
CREATE VIRTUAL TABLE words USING fts5 (text, content='chunks', content_rowid='id', tokenize='porter unicode61');
"""
LOAD_ROWS = 2048


@dataclass(frozen=True, slots=True)
class Removed:
    """A document that went: its label, and the object in which its entry of the log was kept."""

    label: int
    object: str | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk that was found: the uuid of its document, and its text."""

    uuid: str
    text: str


class Store:
    """The tables of one bank.

    Args:
        path: the file; it is made where it is missing.
        dimension: the length of the vectors.
    """

    def __init__(self, path: Path, dimension: int) -> None:
        self.path = path
        self._dimension = dimension
        self._writer = self._connect()
        self._idle: list[sqlite3.Connection] = []
        if not self._writer.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            self._writer.executescript(SCHEMA)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        # A crash loses the file anyway: it is made again from a snapshot and the log.
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.execute("PRAGMA mmap_size = 1073741824")
        return connection

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for this thread: as many are made as read at once."""
        connection = self._idle.pop() if self._idle else self._connect()
        try:
            yield connection
        finally:
            self._idle.append(connection)

    def close(self) -> None:
        """Close the file; nobody reads or writes any more."""
        for connection in (self._writer, *self._idle):
            connection.close()
        self._idle.clear()

    def remove_file(self) -> None:
        """Close the file and remove it."""
        self.close()
        self.path.unlink(missing_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make the changes within it one transaction."""
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._writer.execute("ROLLBACK")
            raise
        self._writer.execute("COMMIT")

    def add(self, stored: DocumentStored, object_name: str | None) -> IndexedDocument:
        """Add a document that is not there (a write)."""
        document = stored.document
        cursor = self._writer.execute(
            "INSERT INTO documents (uuid, mime_type, metadata, content, object) VALUES (?, ?, ?, ?, ?)",
            (
                document.uuid,
                document.mime_type,
                msgspec.json.encode(document.metadata),
                document.content,
                object_name,
            ),
        )
        label = int(cursor.lastrowid or 0)
        vectors = stored.matrix(self._dimension)
        labels = []
        for text in stored.chunks:
            cursor = self._writer.execute(
                "INSERT INTO chunks (document, uuid, text) VALUES (?, ?, ?)",
                (label, document.uuid, text),
            )
            labels.append(int(cursor.lastrowid or 0))
        self._writer.executemany(
            "INSERT INTO vectors (id, vector) VALUES (?, ?)",
            zip(labels, map(bytes, vectors), strict=True),
        )
        self._writer.executemany(
            "INSERT INTO words (rowid, text) VALUES (?, ?)", zip(labels, stored.chunks, strict=True)
        )
        return IndexedDocument(label, document.metadata, np.array(labels, np.int64), vectors)

    def remove(self, uuid: str) -> Removed | None:
        """Remove a document, if it is there (a write)."""
        found = self._writer.execute(
            "SELECT id, object FROM documents WHERE uuid = ?", (uuid,)
        ).fetchone()
        if found is None:
            return None
        label, object_name = found
        chunks = self._writer.execute(
            "SELECT id, text FROM chunks WHERE document = ?", (label,)
        ).fetchall()
        self._writer.executemany(
            "INSERT INTO words (words, rowid, text) VALUES ('delete', ?, ?)", chunks
        )
        self._writer.executemany("DELETE FROM vectors WHERE id = ?", [(one,) for one, _ in chunks])
        self._writer.execute("DELETE FROM chunks WHERE document = ?", (label,))
        self._writer.execute("DELETE FROM documents WHERE id = ?", (label,))
        return Removed(label, object_name)

    def known(self, uuids: Sequence[str]) -> set[str]:
        """Return which of some documents are there."""
        with self._reading() as connection:
            return {uuid for (uuid,) in connection.execute(_select("uuid", uuids), uuids)}

    def documents(self, uuids: Sequence[str]) -> dict[str, MemoryBankDocument]:
        """Return those of some documents that are there, by uuid."""
        with self._reading() as connection:
            rows = connection.execute(_select("uuid, content, metadata, mime_type", uuids), uuids)
            return {row[0]: _document(*row) for row in rows}

    def page(self, after: str, limit: int) -> list[MemoryBankDocument]:
        """Return the first documents after an id, in the order of ids."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT uuid, content, metadata, mime_type FROM documents WHERE uuid > ? "
                "ORDER BY uuid LIMIT ?",
                (after, limit),
            )
            return [_document(*row) for row in rows]

    def chunks(self, labels: Iterable[int]) -> dict[int, Chunk]:
        """Return chunks by their labels."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT id, uuid, text FROM chunks WHERE id IN (SELECT value FROM json_each(?))",
                (_json(list(labels)),),
            )
            return {label: Chunk(uuid, text) for label, uuid, text in rows}

    def chunks_of(self, documents: Sequence[int]) -> list[int]:
        """Return the label of the first chunk of each of some documents, in their order."""
        with self._reading() as connection:
            found: dict[int, int] = dict(
                connection.execute(
                    "SELECT document, min(id) FROM chunks "
                    "WHERE document IN (SELECT value FROM json_each(?)) GROUP BY document",
                    (_json(documents),),
                )
            )
        return [found[document] for document in documents]

    def words(self, expression: str, limit: int) -> list[tuple[int, float]]:
        """Return the labels and BM25 scores (higher is better) of the best chunks for an expression of FTS5."""
        with self._reading() as connection:
            return connection.execute(
                "SELECT rowid, -rank FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?",
                (expression, limit),
            ).fetchall()

    def objects(self) -> set[str]:
        """Return the objects that documents refer to."""
        with self._reading() as connection:
            return {
                name
                for (name,) in connection.execute(
                    "SELECT object FROM documents WHERE object IS NOT NULL"
                )
            }

    def rows(self) -> Iterator[list[IndexedDocument]]:
        """Yield all documents for the index, some thousand at a time, in the order of their labels."""
        with self._reading() as connection:
            after = 0
            while found := connection.execute(
                "SELECT id, metadata FROM documents WHERE id > ? ORDER BY id LIMIT ?",
                (after, LOAD_ROWS),
            ).fetchall():
                last = found[-1][0]
                labels: dict[int, list[int]] = {label: [] for label, _ in found}
                vectors: dict[int, list[bytes]] = {label: [] for label, _ in found}
                for chunk, document, vector in connection.execute(
                    "SELECT chunks.id, document, vector FROM chunks JOIN vectors USING (id) "
                    "WHERE document > ? AND document <= ? ORDER BY chunks.id",
                    (after, last),
                ):
                    labels[document].append(chunk)
                    vectors[document].append(vector)
                yield [
                    IndexedDocument(
                        label,
                        msgspec.json.decode(metadata),
                        np.array(labels[label], np.int64),
                        np.frombuffer(b"".join(vectors[label]), "<f4").reshape(-1, self._dimension),
                    )
                    for label, metadata in found
                ]
                after = last


def _document(uuid: str, content: bytes, metadata: bytes, mime_type: str) -> MemoryBankDocument:
    return MemoryBankDocument(uuid, content, msgspec.json.decode(metadata), mime_type)


def _select(columns: str, uuids: Sequence[str]) -> str:
    """Return the statement that reads some documents; ``json_each`` would cut their ids at NUL."""
    places = ",".join("?" * len(uuids))
    return f"SELECT {columns} FROM documents WHERE uuid IN ({places})"  # noqa: S608 - question marks


def _json(values: Sequence[int]) -> str:
    """Return numbers as one value of a statement; ``json_each`` makes rows of it."""
    return msgspec.json.encode(values).decode()
