"""The intake: documents become chunks of text with vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio

from ...schemas import Conflict, InvalidRequest, MemoryBankDocument, NotFound
from ..embedding.embedder import Embedder
from .log import BankSettings, DocumentStored
from .splitting import split
from .texts import text_of

DEFAULT_CHUNK_SIZE, DEFAULT_CHUNK_OVERLAP = 200, 20


class Intake:
    """How documents become what the log holds."""

    def __init__(self, embedders: Mapping[str, Embedder], default: str) -> None:
        self._embedders = embedders
        self._default = default

    def settings(self, model: str | None, size: int | None, overlap: int | None) -> BankSettings:
        """Return the settings of a new bank.

        Raises:
            NotFound: no such model is served here.
            InvalidRequest: the size or the overlap does not fit the model, or each other.
        """
        embedder = self.embedder(model or self._default)
        most = embedder.max_tokens
        size = min(DEFAULT_CHUNK_SIZE, most) if size is None else size
        overlap = min(DEFAULT_CHUNK_OVERLAP, size // 2) if overlap is None else overlap
        if not 1 <= size <= most:
            raise InvalidRequest(
                f"chunk_size is from 1 to {most}, the most that {embedder.name} reads"
            )
        if not 0 <= overlap < size:
            raise InvalidRequest("chunk_overlap is from 0 to less than chunk_size")
        return BankSettings(embedder.name, embedder.dimension, size, overlap)

    def embedder(self, model: str, dimension: int | None = None) -> Embedder:
        """Return an embedding model.

        Raises:
            NotFound: it is not served here.
            Conflict: its vectors have another length than a bank's.
        """
        embedder = self._embedders.get(model)
        if embedder is None:
            known = ", ".join(sorted(self._embedders))
            raise NotFound(f"there is no embedding model {model!r}; there are {known}")
        if dimension is not None and embedder.dimension != dimension:
            raise Conflict(
                f"the bank's vectors have {dimension} numbers, those of {model} {embedder.dimension}"
            )
        return embedder

    async def stored(
        self, documents: Sequence[MemoryBankDocument], settings: BankSettings
    ) -> list[DocumentStored]:
        """Return documents with their chunks and vectors.

        Raises:
            InvalidRequest: a document has no text, or not the type that it says; the message names it.
        """
        embedder = self.embedder(settings.embedding_model, settings.dimension)
        chunks = [
            await anyio.to_thread.run_sync(_chunks_of, document, settings, embedder)
            for document in documents
        ]
        vectors = await embedder.embed([text for texts in chunks for text in texts])
        found, start = [], 0
        for document, texts in zip(documents, chunks, strict=True):
            rows = vectors[start : start + len(texts)]
            start += len(texts)
            found.append(
                DocumentStored(
                    request="",
                    document=document,
                    chunks=texts,
                    vectors=rows.astype("<f4").tobytes(),
                )
            )
        return found


def _chunks_of(
    document: MemoryBankDocument, settings: BankSettings, embedder: Embedder
) -> list[str]:
    try:
        text = text_of(document.content, document.mime_type)
    except InvalidRequest as error:
        raise type(error)(f"document {document.uuid!r}: {error.message}") from error
    chunks = split(
        text,
        size=settings.chunk_size,
        overlap=settings.chunk_overlap,
        tokenizer=embedder.tokenizer,
    )
    return [chunk.text for chunk in chunks]
