"""One question that several ask at once is asked once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio
import anyio.lowlevel

T = TypeVar("T")


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
