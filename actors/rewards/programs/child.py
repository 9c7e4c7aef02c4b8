"""A child that runs a reward function: `python -m ayllu.actors.rewards.programs.child SOCKET_FD PARENT_PID`.

The function may hang, exit or take the process down with it: that costs this process, and nothing else.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any

from ....bus.lifeline import die_with_parent
from ....schemas import (
    AylluError,
    EngineError,
    InvalidRequest,
    ScoreAnswerRequest,
    decode,
    encode,
)
from .protocol import Failed, FromChild, Ready, Scored, Setup

Function = Callable[..., float | Awaitable[float]]


def main() -> None:
    """Answer what comes, until the worker closes the connection."""
    fd, parent = map(int, sys.argv[1:])
    die_with_parent(parent)
    os.set_inheritable(fd, False)
    # What a function prints belongs to the log.
    os.dup2(2, 1)
    with (
        socket.socket(fileno=fd) as connection,
        connection.makefile("rwb") as lines,
        asyncio.Runner() as runner,
    ):

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
    module, _, name = setup.function.partition(":")
    try:
        function: Function | None = getattr(import_module(module), name, None)
    except Exception as error:
        traceback.print_exc()
        raise InvalidRequest(
            f"the module {module} cannot be imported ({type(error).__name__}); the log says why"
        ) from error
    if not callable(function):
        raise InvalidRequest(f"the module {module} has no function {name}")
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
    except AylluError as error:
        return Failed(error.info)
    except Exception as error:
        # What an exception says may tell of files and secrets here: it stays in the log.
        traceback.print_exc()
        told = f"the function raised {type(error).__name__}; the log of its worker says why"
        return Failed(EngineError(told).info)


async def _result(score: Awaitable[float]) -> float:
    return await score


def _number(score: object) -> float:
    # Anything that is a number by its looks: numpy's and torch's too.
    if isinstance(score, str | bytes) or not hasattr(score, "__float__"):
        raise EngineError(f"the function returned a {type(score).__name__}, which is no number")
    return float(score)


if __name__ == "__main__":
    main()
