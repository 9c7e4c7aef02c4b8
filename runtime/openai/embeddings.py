"""``/v1/embeddings`` in terms of our `embeddings`, and back."""

from __future__ import annotations

import struct
from base64 import b64encode
from typing import Any, Literal

import msgspec

from ...schemas import BusError, EmbeddingsRequest, EmbeddingsResponse, encode
from ...schemas.embeddings import MAX_INPUTS
from .errors import refusal
from .framing import Head, Translated, single
from .reading import read, texts_of
from .types import EmbeddingsAsked

OPERATION = "embeddings"
_REPLY = msgspec.json.Decoder(list[EmbeddingsResponse])


class _Embedding(msgspec.Struct, frozen=True):
    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class _Embeddings(msgspec.Struct, frozen=True):
    data: list[_Embedding]
    model: str
    usage: _Usage
    object: Literal["list"] = "list"


def translate_embeddings(body: bytes, _: Head) -> Translated[Any]:
    """Return a request for the vectors of texts in our own terms.

    Raises:
        InvalidRequest: it is wrong, or asks for what is not served; its details name the field.
    """
    asked = read(body, EmbeddingsAsked)
    texts = texts_of(asked.input, "input")
    if len(texts) > MAX_INPUTS:
        raise refusal("input", f"at most {MAX_INPUTS} texts come in one request")

    def whole(replies: list[EmbeddingsResponse]) -> bytes:
        return _whole(asked, len(texts), single(replies))

    request = EmbeddingsRequest(model=asked.model, input=texts)
    return Translated(OPERATION, request, _REPLY, whole)


def _whole(asked: EmbeddingsAsked, count: int, reply: EmbeddingsResponse) -> bytes:
    vectors = reply.embeddings
    if len(vectors) != count:
        raise BusError(f"{count} texts were answered by {len(vectors)} vectors", retryable=False)
    if asked.dimensions is not None and asked.dimensions != len(vectors[0]):
        # Only the vectors tell it.
        raise refusal("dimensions", f"vectors of this model have {len(vectors[0])}, and no other")
    written = [
        vector if asked.encoding_format == "float" else _base64(vector) for vector in vectors
    ]
    answer = _Embeddings(
        [_Embedding(place, one) for place, one in enumerate(written)],
        asked.model,
        _Usage(reply.prompt_tokens, reply.prompt_tokens),
    )
    return encode(answer)


def _base64(vector: list[float]) -> str:
    """Return a vector as OpenAI's clients ask for it by default: float32, little-endian, in base64."""
    try:
        return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    except OverflowError as error:
        raise BusError("the actor sent numbers that no vector has", retryable=False) from error
