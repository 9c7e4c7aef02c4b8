"""Supervision: what crashes is started again, ever more slowly."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Protocol

import anyio
from anyio.abc import TaskStatus

log = logging.getLogger(__name__)


class Start(Protocol):
    """Runs something until it ends or is cancelled; reports through ``task_status`` when it is ready."""

    def __call__(self, *, task_status: TaskStatus[Any]) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before a restart, in seconds: doubled with each crash in a row, up to a limit.

    Attributes:
        first: before the first restart.
        most: the longest wait.
        healthy_after: what has run for so long begins at ``first`` again.
    """

    first: float = 0.1
    most: float = 10.0
    healthy_after: float = 30.0

    def wait(self, crashes: int) -> float:
        """Return the wait after so many crashes in a row."""
        return min(self.most, self.first * 2.0 ** min(crashes - 1, 20))


async def supervise(
    name: str,
    start: Start,
    *,
    backoff: Backoff = Backoff(),
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Run something for ever, starting it again when it ends or raises; started when it is ready for the first time.

    What it runs owns its tasks; nothing of a crashed run is left when the next begins.

    Raises:
        Exception: whatever it raised before it was ready for the first time.
    """
    ready = crashes = 0

    class Readiness(TaskStatus[Any]):
        def started(self, value: object = None) -> None:  # noqa: ARG002
            nonlocal ready
            ready += 1
            if ready == 1:
                task_status.started()

    while True:
        began = anyio.current_time()
        try:
            await start(task_status=Readiness())
            raise RuntimeError(f"{name} ended by itself")
        except Exception as error:
            if not ready:
                raise
            if anyio.current_time() - began >= backoff.healthy_after:
                crashes = 0
            crashes += 1
            wait = backoff.wait(crashes)
            log.error("%s crashed, starts again in %.1f s: %s", name, wait, error)
            await anyio.sleep(wait)
