"""Bearing with actors and a bus that are away for a while, and with models that are full."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from ..schemas import AylluError, Overloaded

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 60.0
"""How long an actor may be away, in seconds, before what needs it fails."""
FULL_PATIENCE = 600.0
"""How long it may be full: it is there, and says when to come again."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
LONGEST_HINT = 60.0
"""The longest pause that others may ask for."""
AT_ONCE = float("-inf")


async def persistently(work: Callable[[], Awaitable[T]], *, patience: float = PATIENCE) -> T:
    """Do something that may be tried again, and try it again while its actor or the bus is away.

    Raises:
        AylluError: it fails for good, or for ``patience`` seconds; `Overloaded`: for `FULL_PATIENCE` seconds.
    """
    first = give_up_at = anyio.current_time() + patience

    def give_up(error: AylluError) -> float:
        nonlocal give_up_at
        if isinstance(error, Overloaded) and error.retryable:
            give_up_at = anyio.current_time() + patience  # It is not away.
            return first
        return give_up_at if error.retryable else AT_ONCE

    return await until(give_up, work)


async def until(give_up: Callable[[AylluError], float], work: Callable[[], Awaitable[T]]) -> T:
    """Do something, and try it again until the time at which an error of it is given up on; `AT_ONCE` is no time at all.

    `Overloaded` is borne for `FULL_PATIENCE` seconds in any case, with the pauses that it asks for.

    Raises:
        AylluError: the one that was given up on.
    """
    pause = FIRST_PAUSE
    full_until = anyio.current_time() + FULL_PATIENCE
    while True:
        try:
            return await work()
        except AylluError as error:
            at = give_up(error)
            if isinstance(error, Overloaded) and error.retryable:
                at = max(at, full_until)
            if anyio.current_time() > at:
                raise
            log.info("trying again: %s", error)
            wait = pause_after(error, pause)
        await anyio.sleep(wait)
        pause = min(2 * pause, LONGEST_PAUSE)


def pause_after(error: AylluError, usual: float) -> float:
    """Return how long to wait before another try, in seconds: what the error asks for, or the usual time."""
    hint = error.details.get("retry_after")
    if not isinstance(hint, int | float) or not hint > 0:
        return usual
    # Those who were refused together do not come back together.
    return min(hint, LONGEST_HINT) * random.uniform(1.0, 1.25)  # noqa: S311
