"""A double of an embedding model: the vector of a text is the sum of random ones of its words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from ayllu.schemas import InvalidRequest


class HashEmbedder:
    """Deterministic, needs no files, and texts with words in common are near each other. For tests alone.

    Args:
        name: what requests call it.
        dimension: the length of its vectors.
    """

    def __init__(self, name: str = "hash", dimension: int = 32) -> None:
        self.name = name
        self.dimension = dimension
        self.max_tokens = 256
        self.tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        self.tokenizer.pre_tokenizer = WhitespaceSplit()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        found = np.zeros((len(texts), self.dimension), np.float32)
        for number, text in enumerate(texts):
            words = text.lower().split()
            if len(words) > self.max_tokens:
                raise InvalidRequest(f"text {number} is too long")
            for word in words:
                found[number] += vector_of(word, self.dimension)
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        normalised: NDArray[np.float32] = found / np.maximum(lengths, 1e-12)
        return normalised

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


@cache
def vector_of(word: str, dimension: int) -> NDArray[np.float32]:
    """Return the random vector of a word, always the same."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8])
    return np.random.default_rng(seed).normal(size=dimension).astype(np.float32)
