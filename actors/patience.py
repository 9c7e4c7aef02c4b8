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


async def persistently(work: Callable[[], Awaitable[T]], *, patience: float = PATIENCE) -> T:
    """Do something that may be tried again, and try it again while its actor or the bus is away.

    Raises:
        AylluError: it fails for good, or for ``patience`` seconds.
    """
    pause, give_up = FIRST_PAUSE, anyio.current_time() + patience
    while True:
        try:
            return await work()
        except AylluError as error:
            if not error.retryable or anyio.current_time() > give_up:
                raise
            log.info("trying again: %s", error)
        await anyio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
