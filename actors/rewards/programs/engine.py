"""The engine of programs: each answer goes to one, and what it gives is checked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from ....schemas import AylluError
from ..engine import Answer, Score
from ..items import OneByOne, within


class Program(Protocol):
    """Scores one answer. Used as ``async with program:``; it keeps its own time."""

    at_once: int
    """How many answers it may be given at once."""

    async def __aenter__(self) -> Program:
        """Make it ready.

        Raises:
            AylluError: it cannot be.
        """
        ...

    async def __aexit__(self, *exc: object) -> None:
        """End it, and all that it started."""
        ...

    async def score(self, answer: Answer) -> float:
        """Return the score of an answer; cancelling it ends its work.

        Raises:
            AylluError: it has none, or none within its time.
        """
        ...


class ProgramEngine:
    """A `RewardEngine` whose scores a program makes.

    Args:
        program: makes them.
        description: what they mean, for people.
        lowest: the least score there is; a lower one is an error of its answer.
        highest: the largest one.
    """

    name = "program"
    context = 0

    def __init__(
        self, program: Program, *, description: str, lowest: float | None, highest: float | None
    ) -> None:
        self.description = description
        self.lowest = lowest
        self.highest = highest
        self._program = program
        self._one_by_one = OneByOne(self._one, at_once=program.at_once)

    async def __aenter__(self) -> ProgramEngine:
        """Make the program ready."""
        await self._program.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End the program."""
        await self._program.__aexit__(*exc)

    def score(
        self, answers: Sequence[Answer]
    ) -> AsyncGenerator[tuple[int, Score | AylluError], None]:
        """Score answers; see `RewardEngine.score`."""
        return self._one_by_one(answers)

    async def _one(self, answer: Answer) -> Score:
        return within(await self._program.score(answer), self.lowest, self.highest)
