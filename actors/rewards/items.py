"""Scoring answers one by one, several at a time, for engines that have no batches of their own."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial

import anyio

from ...schemas import AylluError, EngineError
from ..ordered import as_done
from .engine import Answer, Score

log = logging.getLogger(__name__)

Result = Score | AylluError


class OneByOne:
    """Scores answers one by one; calls take turns.

    Args:
        score: returns the score of an answer.
        at_once: how many answers are scored at once, those of all calls together.
    """

    def __init__(self, score: Callable[[Answer], Awaitable[Score]], *, at_once: int) -> None:
        self._score = score
        self._at_once = at_once
        self._free = anyio.Semaphore(at_once)

    async def __call__(self, answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Result], None]:
        """Yield the index of each answer and its score, or the error that it had instead, as they are done."""
        jobs = (partial(self._run, index, answer) for index, answer in enumerate(answers))
        async with aclosing(as_done(jobs, at_once=self._at_once)) as results:
            async for result in results:
                yield result

    async def _run(self, index: int, answer: Answer) -> tuple[int, Result]:
        try:
            async with self._free:
                return index, await self._score(answer)
        except AylluError as error:
            return index, error
        except Exception as error:
            # Whatever it is, it costs nobody else a score; what it says stays here.
            log.exception("an answer was not scored")
            return index, EngineError(f"the reward model failed on it: {type(error).__name__}")


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
