"""Asking actors that may be away: many answers in a row wait for one absence once, and not each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from ...schemas import AylluError, ModelNotFound
from ..patience import persistently

T = TypeVar("T")


class Patience:
    """How long what a reward model asks may be away.

    A model that nobody serves counts as away: the configuration names it, so that it will come, or come back. Once the
    patience has run out, questions are tried once and no more, until one is answered or as much time again has passed.

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

        async def once() -> T:
            try:
                return await ask()
            except ModelNotFound as error:
                raise ModelNotFound(error.message, retryable=True, details=error.details) from error

        now = anyio.current_time()
        if self._until is None or now > self._until + self._seconds:
            self._until = now + self._seconds
        try:
            found = await persistently(once, patience=max(0.0, self._until - now))
        except AylluError as error:
            if not error.retryable:  # It is there.
                self._until = None
            raise
        self._until = None
        return found
