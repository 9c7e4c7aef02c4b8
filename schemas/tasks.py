"""Task groups: behind context managers, and the errors that come out of them; for bus, actors and client alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

X = TypeVar("X", bound=BaseException)


@asynccontextmanager
async def background_tasks() -> AsyncIterator[TaskGroup]:
    """Open a task group that is not the user's own: cancelled at the end of the block.

    What the block raises comes out as it is, not in an exception group: a user who writes ``async with connect(url)``
    need not know that there are tasks behind it.
    """
    try:
        async with anyio.create_task_group() as tasks:
            try:
                yield tasks
            finally:
                tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from group.exceptions[0].__cause__


def first_of(group: BaseExceptionGroup[X]) -> X:
    """Return the first error of a group, which may have groups in it."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first
