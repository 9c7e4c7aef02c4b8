"""Asking actors that may be away: many answers in a row wait for one absence once, and not each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from ...schemas import AylluError, DeadlineExceeded, ModelNotFound, Overloaded
from ..patience import AT_ONCE, until

T = TypeVar("T")


class Patience:
    """How long what a reward model asks may be away, from the first question on that it was away for.

    A model that nobody serves counts as away: the configuration names it, so that it will come, or come back. One that is
    slow or full is there. Once the patience has run out, questions are tried once and no more, until one is answered or as much
    time again has passed.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._until: float | None = None

    async def bear(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Return an answer.

        Raises:
            AylluError: it is refused, or whoever should give it stays away.
        """
        given_up_at: float | None = None

        def give_up(error: AylluError) -> float:
            nonlocal given_up_at
            if not _away(error):
                self._until = None
                return AT_ONCE
            if given_up_at is None:
                given_up_at = self._given_up_at()
            return given_up_at

        found = await until(give_up, ask)
        self._until = None
        return found

    def _given_up_at(self) -> float:
        """Return how long it may be away that is away now."""
        now = anyio.current_time()
        if self._until is None or now > self._until + self._seconds:
            self._until = now + self._seconds
        return self._until


def _away(error: AylluError) -> bool:
    if isinstance(error, ModelNotFound):
        return True
    return error.retryable and not isinstance(error, DeadlineExceeded | Overloaded)
