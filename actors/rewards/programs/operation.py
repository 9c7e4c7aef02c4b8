"""Operations of actors on the bus as programs."""

from __future__ import annotations

from contextlib import closing

from ....bus.bus import Bus
from ....schemas import (
    AylluError,
    EngineError,
    InvalidRequest,
    ScoreAnswerRequest,
    ScoreAnswerResponse,
    Unavailable,
    decode,
    encode,
)
from ....schemas.proxy import single_reply
from ....schemas.webmethod import SUBJECT_PREFIX
from ..asking import Patience
from ..engine import Answer


class OperationProgram:
    """A `Program` that is an operation which takes a `ScoreAnswerRequest` and returns a `ScoreAnswerResponse`.

    Args:
        bus: where its actors are.
        operation: its name.
        timeout: how long it may take for an answer, in seconds, and how long its actor may be away before.
        at_once: how many calls may run at once.
    """

    def __init__(self, bus: Bus, operation: str, *, timeout: float, at_once: int) -> None:
        self.at_once = at_once
        self._bus = bus
        self._operation = operation
        self._timeout = timeout
        self._patience = Patience(timeout)

    async def __aenter__(self) -> OperationProgram:
        """Do nothing: the actors may come later."""
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Do nothing."""

    async def score(self, answer: Answer) -> float:
        """Return the score of an answer.

        Raises:
            AylluError: what the operation raised, or what happened on the way.
            EngineError: it answered something else than a score.
        """
        payload = encode(ScoreAnswerRequest(answer.dialog, answer.message, answer.reference))

        async def call() -> bytes:
            running = await self._bus.calls.open(
                SUBJECT_PREFIX + self._operation,
                payload,
                timeout=self._timeout,
                explain_absence=self._absence,
            )
            with closing(running):
                return await single_reply(running)

        reply = await self._patience.bear(call)
        try:
            return decode(reply, ScoreAnswerResponse).score
        except InvalidRequest as error:
            raise EngineError(
                f"the operation {self._operation} answered no score: {error.message}"
            ) from error

    async def _absence(self) -> AylluError:
        return Unavailable(f"no live actor serves {self._operation} at present")
