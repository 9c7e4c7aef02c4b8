"""Scoring answers one by one, several at a time, for engines that have no batches of their own."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial

from ...schemas import AylluError, EngineError
from ..ordered import as_done
from .engine import Answer, Score

Result = Score | AylluError


async def one_by_one(
    answers: Sequence[Answer], score: Callable[[Answer], Awaitable[Score]], *, at_once: int
) -> AsyncGenerator[tuple[int, Result], None]:
    """Yield the index of each answer and its score, or the error that ``score`` raised for it, as they are done."""

    async def run(index: int) -> tuple[int, Result]:
        try:
            return index, await score(answers[index])
        except AylluError as error:
            return index, error

    jobs = (partial(run, index) for index in range(len(answers)))
    async with aclosing(as_done(jobs, at_once=at_once)) as results:
        async for result in results:
            yield result


def within(value: float, lowest: float | None, highest: float | None) -> Score:
    """Return a score that lies in the range that a reward model tells of.

    Raises:
        EngineError: it does not, or is not finite.
    """
    low = -math.inf if lowest is None else lowest
    high = math.inf if highest is None else highest
    if not math.isfinite(value) or not low <= value <= high:
        raise EngineError(f"the score {value:g} is not a number between {low:g} and {high:g}")
    return Score(value)
