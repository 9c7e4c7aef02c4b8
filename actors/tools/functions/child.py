"""A child that runs the function of a tool: `python -m ayllu.actors.tools.functions.child SOCKET_FD PARENT_PID`.

The function may hang, exit, take all the memory that it may or the process down with it: that costs this process only.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from ....schemas import AylluError, TooLarge, decode, encode
from ...functions.child import failure_of, function_at, worker_connection
from .protocol import MAX_LINE, Answered, Described, Failed, FromChild, Setup
from .results import content_of
from .signature import Signature

Function = Callable[..., Any]


def main() -> None:
    """Answer what comes, until the worker closes the connection."""
    with worker_connection() as lines, asyncio.Runner() as runner:

        def say(message: FromChild) -> None:
            lines.write(encode(message) + b"\n")
            lines.flush()

        setup = decode(lines.readline(), Setup)
        _limit_memory(setup.memory)
        try:
            function: Function = function_at(setup.function)
            signature = Signature(function, setup.function)
        except AylluError as error:
            say(Failed(error.info))
            return
        say(Described(signature.description, signature.parameters))
        for line in lines:
            say(_answer(function, signature, decode(line, dict[str, Any]), runner))


def _limit_memory(most: int) -> None:
    if sys.platform != "linux":  # Elsewhere the limit counts nothing, or everything.
        return
    import resource

    # What is private and may be written; files that are mapped, and so libraries, do not count.
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _answer(
    function: Function, signature: Signature, arguments: dict[str, Any], runner: asyncio.Runner
) -> FromChild:
    try:
        value = function(**signature.read(arguments))
        if inspect.isawaitable(value):
            value = runner.run(_result(value))
        said = Answered(content_of(value))
        if len(encode(said)) >= MAX_LINE:
            raise TooLarge(f"the function answered more than {MAX_LINE} bytes")
        return said
    except Exception as error:
        return Failed(failure_of(error))


async def _result(value: Awaitable[Any]) -> Any:
    return await value


if __name__ == "__main__":
    main()
