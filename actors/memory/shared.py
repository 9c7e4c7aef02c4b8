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
        self.error: Exception | None = None


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

        Where whoever asked was cancelled, another one asks.

        Raises:
            Exception: what asking raised, for all who shared the question: a bus that is away would let them wait for it
                one after the other.
        """
        while True:
            asking = self._asking
            if asking is None:
                return await self._lead()
            joined = not asking.sent
            await asking.done.wait()
            if joined and asking.error is not None:
                raise asking.error
            # Whoever asked may have been cancelled: then the next one asks.
            if joined and asking.answers:
                return asking.answers[0]

    async def _lead(self) -> T:
        asking = self._asking = _Asking()
        try:
            # Whoever comes in this turn of the loop shares the question.
            await anyio.lowlevel.checkpoint()
            asking.sent = True
            found = await self._ask()
        except Exception as error:
            asking.error = error
            raise
        else:
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
            Exception: what the work raised for these questions; no question of others is the reason.
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
        group = self._first_who_wait()
        try:
            found = await work([question for asked in group for question in asked.questions])
        except Exception:
            if len(group) == 1:
                raise
            # Anybody's question may be the reason: this one is answered alone, the others ask again.
            group = group[:1]
            found = await work(list(group[0].questions))
        answers = iter(found)
        for asked in group:
            asked.answers = [next(answers) for _ in asked.questions]
            # One that was cancelled meanwhile has left.
            if asked in self._waiting:
                self._waiting.remove(asked)

    def _first_who_wait(self) -> list[_Asked[Q, T]]:
        group: list[_Asked[Q, T]] = []
        count = 0
        for asked in self._waiting:
            count += len(asked.questions)
            if group and count > self._most:
                break
            group.append(asked)
        return group
