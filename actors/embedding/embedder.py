"""What an embedding model must do."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer


class Embedder(Protocol):
    """A model that makes vectors of texts; ``async with`` loads it and lets it go."""

    @property
    def name(self) -> str:
        """What requests call it; vectors of two models cannot be compared."""
        ...

    @property
    def dimension(self) -> int:
        """The length of its vectors."""
        ...

    @property
    def max_tokens(self) -> int:
        """The longest text, in tokens of `tokenizer`, without those that the model itself adds."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Splits texts into its tokens; it neither cuts nor pads them."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens texts have. It blocks: some microseconds a word."""
        ...

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts: one row each, in their order, of length 1.

        It does not block the event loop; cancelling it takes effect after the batch that is being computed.

        Raises:
            InvalidRequest: a text is longer than `max_tokens`; nothing is cut silently.
        """
        ...

    async def __aenter__(self) -> Self:
        """Load the model."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let it go."""
        ...
