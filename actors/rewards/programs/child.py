"""A child that runs a reward function: `python -m ayllu.actors.rewards.programs.child SOCKET_FD PARENT_PID`.

The function may hang, exit or take the process down with it: that costs this process, and nothing else.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from ....schemas import (
    AylluError,
    EngineError,
    InvalidRequest,
    ScoreAnswerRequest,
    decode,
    encode,
)
from ...functions.child import failure_of, function_at, worker_connection
from .protocol import Failed, FromChild, Ready, Scored, Setup

Function = Callable[..., float | Awaitable[float]]


def main() -> None:
    """Answer what comes, until the worker closes the connection."""
    with worker_connection() as lines, asyncio.Runner() as runner:

        def say(message: FromChild) -> None:
            lines.write(encode(message) + b"\n")
            lines.flush()

        setup = decode(lines.readline(), Setup)
        try:
            function = _function_of(setup)
        except AylluError as error:
            say(Failed(error.info))
            return
        say(Ready())
        for line in lines:
            say(_answer(function, decode(line, ScoreAnswerRequest), setup.params, runner))


def _function_of(setup: Setup) -> Function:
    """Return the function.

    Raises:
        InvalidRequest: there is none, or it does not take what it will be given.
    """
    function: Function = function_at(setup.function)
    try:
        inspect.signature(function).bind(None, None, None, **setup.params)
    except TypeError as error:
        raise InvalidRequest(
            f"{setup.function} does not take (dialog, answer, reference) and the params: {error}"
        ) from error
    return function


def _answer(
    function: Function, asked: ScoreAnswerRequest, params: dict[str, Any], runner: asyncio.Runner
) -> FromChild:
    try:
        score = function(asked.dialog, asked.answer, asked.reference, **params)
        if inspect.isawaitable(score):
            score = runner.run(_result(score))
        return Scored(float(_number(score)))
    except Exception as error:
        return Failed(failure_of(error))


async def _result(score: Awaitable[float]) -> float:
    return await score


def _number(score: object) -> float:
    # Anything that is a number by its looks: numpy's and torch's too.
    if isinstance(score, str | bytes) or not hasattr(score, "__float__"):
        raise EngineError(f"the function returned a {type(score).__name__}, which is no number")
    return float(score)


if __name__ == "__main__":
    main()
