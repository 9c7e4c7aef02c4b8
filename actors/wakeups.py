"""Wake-ups from a work queue, for workers that have so many slots."""

from __future__ import annotations

import logging

import anyio

from ..bus.durable import Delivery, WorkQueue
from ..schemas import BusError

log = logging.getLogger(__name__)

FETCH_SECONDS = 5.0
RETRY_SECONDS = 1.0


async def fetched(queue: WorkQueue, free: anyio.Semaphore, name: str) -> list[Delivery]:
    """Wait for a slot, and return no more wake-ups than there are slots; none after a while, or where the bus is away.

    Cancelling it may strand a wake-up until its time runs out; see `WorkQueue.fetch`.

    Args:
        queue: where they wait.
        free: the slots; none is taken.
        name: what the wake-ups are called in the log.
    """
    await free.acquire()  # There is a slot at least.
    free.release()
    try:
        return await queue.fetch(free.value or 1, wait=FETCH_SECONDS)
    except BusError as error:
        log.warning("%s cannot be fetched: %s", name, error)
        await anyio.sleep(RETRY_SECONDS)
        return []
