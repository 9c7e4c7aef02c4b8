"""Many jobs at once: their results in order, as they are done, or as they are told of."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import anyio

T = TypeVar("T")
Job = Callable[[], Coroutine[Any, Any, T]]

CLOSE_SECONDS = 10.0
"""How long cancelled jobs may take to end; an engine takes at most half of it."""


async def in_order(jobs: Iterable[Job[T]], *, at_once: int, ahead: int) -> AsyncGenerator[T, None]:
    """Run jobs, at most ``at_once`` at a time, and yield their results in the order of the jobs.

    At most ``ahead`` jobs are begun or done and not yet yielded, so that a slow reader bounds what is kept. The error of a
    job is raised at its turn. When the generator ends or is closed, all its jobs have ended.
    """
    # An anyio task group around a `yield` is wrong: whoever closes the generator may be another task than the one that
    # entered the group. So the jobs are plain asyncio tasks, owned by this generator, which has seen every one of them
    # end before it returns.
    free = asyncio.Semaphore(at_once)
    waiting = iter(jobs)
    running: deque[asyncio.Task[T]] = deque()

    async def run(job: Job[T]) -> T:
        async with free:
            return await job()

    def fill() -> None:
        while len(running) < ahead and (job := next(waiting, None)) is not None:
            running.append(asyncio.create_task(run(job)))

    try:
        fill()
        while running:
            # Not `await running[0]`: that would hand on each cancellation of the reader, into the clean-up too.
            await asyncio.wait([running[0]])
            result = running.popleft().result()
            fill()
            yield result
    finally:
        await _end(running)


async def as_done(jobs: Iterable[Job[T]], *, at_once: int) -> AsyncGenerator[T, None]:
    """Run jobs, at most ``at_once`` at a time, and yield their results as they are done.

    A job begins when the results before it were taken, so that a slow reader bounds what is kept. The first error of a job is
    raised. When the generator ends or is closed, all its jobs have ended.
    """
    waiting = iter(jobs)
    running: set[asyncio.Task[T]] = set()
    try:
        while True:
            while len(running) < at_once and (job := next(waiting, None)) is not None:
                running.add(asyncio.create_task(job()))
            if not running:
                return
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                result = task.result()
                running.discard(task)
                yield result
    finally:
        await _end(running)


async def as_told(
    work: Callable[[Callable[[T], None]], Coroutine[Any, Any, None]],
) -> AsyncGenerator[T, None]:
    """Run work that tells of results while it goes on, and yield them as they come.

    The error of the work is raised after what it told. When the generator ends or is closed, the work has ended.
    """
    told, results = anyio.create_memory_object_stream[T](math.inf)

    async def run() -> None:
        with told:
            await work(told.send_nowait)

    task = asyncio.create_task(run())
    try:
        with results:
            async for result in results:
                yield result
        await asyncio.wait([task])
        task.result()
    finally:
        await _end([task])


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks together and wait until they have ended."""
    left = list(tasks)
    for task in left:
        task.cancel()
    if left:
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await asyncio.wait(left)
    for task in left:
        if task.done() and not task.cancelled():
            task.exception()  # seen: nobody reads it any more
