"""Python functions as programs: run in children, so that one that hangs or dies takes nothing with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ....schemas import ScoreAnswerRequest, encode, error_from
from ...functions.pool import FunctionChildren, nonsense
from ..engine import Answer
from .protocol import MAX_LINE, Failed, FromChild, Ready, Scored, Setup, from_child

CHILD = "ayllu.actors.rewards.programs.child"


class FunctionProgram:
    """A `Program` that is a Python function ``(dialog, answer, reference, **params) -> float``, plain or async.

    Args:
        function: ``package.module:name``; Python finds the module, and runs it in the children only.
        params: what the function gets beside answers.
        timeout: how long it may take for an answer, in seconds.
        at_once: how many children there may be; each is kept for the next answer.
    """

    def __init__(
        self, function: str, params: Mapping[str, Any], *, timeout: float, at_once: int
    ) -> None:
        self.at_once = at_once
        self._children = FunctionChildren(
            CHILD,
            encode(Setup(function, dict(params))),
            _check_ready,
            seconds=timeout,
            at_once=at_once,
            max_line=MAX_LINE,
        )

    async def __aenter__(self) -> FunctionProgram:
        """Start the first child.

        Raises:
            InvalidRequest: there is no such function, or it takes other arguments.
        """
        await self._children.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End all children."""
        await self._children.__aexit__(*exc)

    async def score(self, answer: Answer) -> float:
        """Return the score of an answer.

        Raises:
            AylluError: what the function raised; `EngineError` for what is none of ours.
            DeadlineExceeded: it took too long.
        """
        asked = ScoreAnswerRequest(answer.dialog, answer.message, answer.reference)
        said = _read(await self._children.ask(encode(asked)))
        if isinstance(said, Scored):
            return float("nan") if said.score is None else said.score
        raise _error_of(said)


def _check_ready(line: bytes) -> None:
    said = _read(line)
    if not isinstance(said, Ready):
        raise _error_of(said)


def _read(line: bytes) -> FromChild:
    try:
        return from_child.decode(line)
    except msgspec.DecodeError as error:
        raise nonsense() from error


def _error_of(said: FromChild) -> Exception:
    return error_from(said.error) if isinstance(said, Failed) else nonsense()
