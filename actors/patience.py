"""Bearing with actors and a bus that are away for a while."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from ..schemas import AylluError

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 60.0
"""How long an actor may be away, in seconds, before what needs it fails."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
AT_ONCE = float("-inf")


async def persistently(work: Callable[[], Awaitable[T]], *, patience: float = PATIENCE) -> T:
    """Do something that may be tried again, and try it again while its actor or the bus is away.

    Raises:
        AylluError: it fails for good, or for ``patience`` seconds.
    """
    give_up = anyio.current_time() + patience
    return await until(lambda error: give_up if error.retryable else AT_ONCE, work)


async def until(give_up: Callable[[AylluError], float], work: Callable[[], Awaitable[T]]) -> T:
    """Do something, and try it again until the time at which an error of it is given up on; `AT_ONCE` is no time at all.

    Raises:
        AylluError: the one that was given up on.
    """
    pause = FIRST_PAUSE
    while True:
        try:
            return await work()
        except AylluError as error:
            if anyio.current_time() > give_up(error):
                raise
            log.info("trying again: %s", error)
        await anyio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
