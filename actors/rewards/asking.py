"""Asking actors that may be away: many answers in a row wait for one absence once, and not each of them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from ...schemas import AylluError, DeadlineExceeded, ModelNotFound
from ..patience import FIRST_PAUSE, LONGEST_PAUSE

log = logging.getLogger(__name__)

T = TypeVar("T")


class Patience:
    """How long what a reward model asks may be away, from the first question on that it was away for.

    A model that nobody serves counts as away: the configuration names it, so that it will come, or come back. One that is
    slow is there. Once the patience has run out, questions are tried once and no more, until one is answered or as much
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
        pause, give_up = FIRST_PAUSE, None
        while True:
            try:
                found = await ask()
            except AylluError as error:
                if not _away(error):
                    self._until = None
                    raise
                if give_up is None:
                    give_up = self._given_up_at()
                if anyio.current_time() > give_up:
                    raise
                log.info("trying again: %s", error)
            else:
                self._until = None
                return found
            await anyio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _given_up_at(self) -> float:
        """Return how long it may be away that is away now."""
        now = anyio.current_time()
        if self._until is None or now > self._until + self._seconds:
            self._until = now + self._seconds
        return self._until


def _away(error: AylluError) -> bool:
    if isinstance(error, ModelNotFound):
        return True
    return error.retryable and not isinstance(error, DeadlineExceeded)
