"""What several want at once is done once: one question, or the work for many."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel

T = TypeVar("T")
Q = TypeVar("Q")


class _Asking(Generic[T]):
    def __init__(self) -> None:
        self.sent = False
        self.done = anyio.Event()
        self.answers: list[T] = []


class SharedQuestion(Generic[T]):
    """Asks on behalf of all who come before the question is sent; later ones wait for the next.

    So everybody gets an answer that was true after they came.

    Args:
        ask: asks.
    """

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._asking: _Asking[T] | None = None

    async def answer(self) -> T:
        """Return an answer that was given to a question sent after this call.

        Raises:
            Exception: what asking raised; those who shared it ask again.
        """
        while True:
            asking = self._asking
            if asking is None:
                return await self._lead()
            joined = not asking.sent
            await asking.done.wait()
            # Whoever asked may have failed or been cancelled: then the next one asks.
            if joined and asking.answers:
                return asking.answers[0]

    async def _lead(self) -> T:
        asking = self._asking = _Asking()
        try:
            # Whoever comes in this turn of the loop shares the question.
            await anyio.lowlevel.checkpoint()
            asking.sent = True
            found = await self._ask()
            asking.answers.append(found)
            return found
        finally:
            self._asking = None
            asking.done.set()


class _Asked(Generic[Q, T]):
    def __init__(self, questions: Sequence[Q]) -> None:
        self.questions = questions
        self.answers: list[T] | None = None


class SharedWork(Generic[Q, T]):
    """Answers what several ask at once in one go; while that runs, the next go gathers.

    Args:
        most: how many questions go together; more come together only from one caller.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._gate = anyio.Lock(fast_acquire=True)
        self._waiting: list[_Asked[Q, T]] = []

    async def answers(
        self, questions: Sequence[Q], work: Callable[[list[Q]], Awaitable[list[T]]]
    ) -> list[T]:
        """Return the answers to some questions, in their order.

        Args:
            questions: what is asked.
            work: answers all questions of a go, in their order; that of one of those who share it is used.

        Raises:
            Exception: what the work raised; others who shared it ask again.
        """
        asked: _Asked[Q, T] = _Asked(questions)
        self._waiting.append(asked)
        try:
            async with self._gate:
                # In the order of their coming: whoever gets in unanswered is the first who waits.
                if asked.answers is None:
                    await self._go(work)
            if asked.answers is None:
                raise RuntimeError("the first who waits is in every go")
            return asked.answers
        finally:
            if asked.answers is None:
                self._waiting.remove(asked)

    async def _go(self, work: Callable[[list[Q]], Awaitable[list[T]]]) -> None:
        group: list[_Asked[Q, T]] = []
        questions: list[Q] = []
        for asked in self._waiting:
            if group and len(questions) + len(asked.questions) > self._most:
                break
            group.append(asked)
            questions += asked.questions
        found = iter(await work(questions))
        for asked in group:
            asked.answers = [next(found) for _ in asked.questions]
            # One that was cancelled meanwhile has left.
            if asked in self._waiting:
                self._waiting.remove(asked)
