"""Functions as tools, in a program's own process."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import anyio.to_thread

from ....schemas import AylluError, Content, EngineError, ToolRequest
from ....schemas.tools import MAX_OUTPUT, TOOL_SECONDS
from ..tool import Tool
from .results import content_of
from .signature import Signature, undescribed

log = logging.getLogger(__name__)


class _OwnFunction:
    """A `Tool` that is a function in this process."""

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        description: str,
        signature: Signature,
        *,
        seconds: float,
        max_output: int,
        idempotent: bool,
    ) -> None:
        self.name = name
        self.description = description
        self.parameters: Mapping[str, Any] = signature.parameters
        self.idempotent = idempotent
        self.seconds = seconds
        self.max_output = max_output
        self._function = function
        self._signature = signature

    async def run(self, request: ToolRequest) -> Content:
        """Run the function, a plain one in a thread; see `Tool.run`."""
        call = partial(self._function, **self._signature.read(request.arguments))
        try:
            if inspect.iscoroutinefunction(self._function):
                return content_of(await call())
            value = await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
            return content_of(await value if inspect.isawaitable(value) else value)
        except AylluError:
            raise
        except Exception as error:
            # What an exception says may tell of files and secrets here: it stays in the log.
            log.exception("the tool %s failed", self.name)
            told = f"the function raised {type(error).__name__}; the log of its process says why"
            raise EngineError(told) from error


def function_tool(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    description: str | None = None,
    seconds: float = TOOL_SECONDS,
    max_output: int = MAX_OUTPUT,
    idempotent: bool = False,
) -> Tool:
    """Return a `Tool` that is a function in this process: ``serve(bus, ToolsActor([function_tool(f)]))``.

    Nothing contains it: it shares the process, and a plain function that does not return keeps its thread.

    Args:
        function: plain or async; its parameters have annotations that JSON can say.
        name: what models call it; by default the function's name.
        description: what it does, for the model; by default the first paragraph of its docstring.
        seconds: how long a call may take.
        max_output: how many bytes of text it may answer.
        idempotent: whether a call that failed, or whose outcome is unknown, may be made again.

    Raises:
        InvalidRequest: it can be no tool; the message names the function and the parameter.
    """
    path = f"{function.__module__}:{getattr(function, '__name__', function)}"
    signature = Signature(function, path)
    told = description or signature.description
    if not told:
        raise undescribed(path)
    return _OwnFunction(
        function,
        name or function.__name__,
        told,
        signature,
        seconds=seconds,
        max_output=max_output,
        idempotent=idempotent,
    )
