"""The log of all memory banks: what is in it, and how a change becomes entries.

A stream with one subject for each bank and one for each document, of which only the last entry is kept: that is the
compaction. A change (a request) is one atomic batch, fenced by the last sequence of the whole stream, so that it was
checked against the very state on which it is applied. What is deleted leaves a marker that goes by itself after
`MARKER_SECONDS`; whoever was away for longer starts anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...bus.durable import NewEntry, StreamSpec
from ...bus.subjects import ROOT, decode_token, encode_token
from ...schemas import MemoryBankDocument, encode

STREAM = "BANKS"
PREFIX = f"{ROOT}.bank."
IDENTITY_SUBJECT = f"{PREFIX}_log"
"""Where the log says which one it is; no bank's token holds an underscore."""
LOG = StreamSpec(
    name=STREAM,
    subjects=(f"{PREFIX}>",),
    max_bytes=8 << 30,
    max_per_subject=1,
    # A full log refuses what is new: nothing that was acknowledged may be lost.
    discard="new",
    atomic=True,
    expiring=True,
)
MARKER_SECONDS = 7 * 86_400


class BankSettings(msgspec.Struct, frozen=True):
    """How a bank's documents become vectors; fixed when it is created.

    Attributes:
        embedding_model: the name of the model.
        dimension: the length of its vectors.
        chunk_size: the most tokens of the model in one chunk.
        chunk_overlap: how many tokens neighbouring chunks share.
    """

    embedding_model: str
    dimension: int
    chunk_size: int
    chunk_overlap: int


class Change(msgspec.Struct, frozen=True, tag_field="op", kw_only=True):
    """An entry of the log; the entries of one request have the same ``request``, and its last one is the ``end``."""

    request: str
    end: bool = False


class BankCreated(Change, frozen=True, tag="create"):
    """A bank, from here on empty."""

    name: str
    settings: BankSettings


class BankDropped(Change, frozen=True, tag="drop"):
    """The marker of a bank that was removed."""


class DocumentStored(Change, frozen=True, tag="put"):
    """A document as it is from here on.

    Attributes:
        document: as the client gave it.
        chunks: the texts that are found.
        vectors: their vectors: rows of little-endian float32, normalised (base64 in JSON).
    """

    document: MemoryBankDocument
    chunks: list[str]
    vectors: bytes

    def matrix(self, dimension: int) -> NDArray[np.float32]:
        """Return the vectors, one row for each chunk."""
        return np.frombuffer(self.vectors, "<f4").reshape(len(self.chunks), dimension)


class DocumentDeleted(Change, frozen=True, tag="delete"):
    """The marker of a document that was removed."""


class Claimed(Change, frozen=True, tag="claim"):
    """A `DocumentStored` that is too large for a message and waits in the object store under a name of its own."""

    object: str
    sha256: str


class Identity(msgspec.Struct, frozen=True, tag="log", tag_field="op"):
    """Which log this is: what was kept of another one is of no use."""

    id: str


LogEntry = BankCreated | BankDropped | DocumentStored | DocumentDeleted | Claimed | Identity
ENTRIES: msgspec.json.Decoder[Any] = msgspec.json.Decoder(LogEntry)


def bank_subject(bank: str) -> str:
    """Return the subject of what happens to a bank."""
    return PREFIX + encode_token(bank)


def document_subject(bank: str, document: str) -> str:
    """Return the subject of what happens to a document."""
    return f"{PREFIX}{encode_token(bank)}.{encode_token(document)}"


def names_of(subject: str) -> tuple[str, str | None]:
    """Return the bank and the document that a subject of the log stands for.

    Raises:
        ValueError: it is no such subject.
    """
    bank, _, document = subject.removeprefix(PREFIX).partition(".")
    return decode_token(bank), decode_token(document) if document else None


def batch(request: str, entries: Sequence[tuple[str, Change]]) -> list[NewEntry]:
    """Return the entries of a request as they are appended; markers go by themselves in time."""
    last = len(entries) - 1
    return [
        NewEntry(
            subject,
            encode(msgspec.structs.replace(change, request=request, end=number == last)),
            msg_id=f"{request}.{number}",
            ttl=MARKER_SECONDS if isinstance(change, BankDropped | DocumentDeleted) else 0,
        )
        for number, (subject, change) in enumerate(entries)
    ]
