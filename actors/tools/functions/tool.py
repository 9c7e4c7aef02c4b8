"""Functions as tools, in children of a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ....schemas import (
    Content,
    ToolRequest,
    encode,
    error_from,
)
from ...functions.pool import START_SECONDS, FunctionChildren, nonsense
from .protocol import MAX_LINE, Answered, Described, Failed, FromChild, Setup, from_child
from .settings import FunctionSettings
from .signature import undescribed

CHILD = "ayllu.actors.tools.functions.child"
SPARE_SECONDS = 5.0
"""What a call gets beyond the function's own time and the start of its process, so that the word about that arrives."""


class FunctionTool:
    """A `Tool` that is a function in children of this process; it is entered before it is looked at, and run.

    Args:
        settings: the function, and its limits.
    """

    def __init__(self, settings: FunctionSettings) -> None:
        self.name = settings.tool_name
        self.description = settings.description or ""
        self.parameters: Mapping[str, Any] = {}
        self.idempotent = settings.idempotent
        self.seconds = settings.seconds + START_SECONDS + SPARE_SECONDS
        self.max_output = settings.max_output
        self._path = settings.function
        self._children = FunctionChildren(
            CHILD,
            encode(Setup(settings.function, settings.memory_mib << 20)),
            self._described,
            seconds=settings.seconds,
            at_once=settings.at_once,
            max_line=MAX_LINE,
        )

    async def __aenter__(self) -> FunctionTool:
        """Start the first child, which says what the function takes.

        Raises:
            InvalidRequest: there is no such function, or it can be no tool.
        """
        await self._children.__aenter__()
        if not self.description:
            await self._children.__aexit__()
            raise undescribed(self._path)
        return self

    async def __aexit__(self, *exc: object) -> None:
        """End all children."""
        await self._children.__aexit__(*exc)

    async def run(self, request: ToolRequest) -> Content:
        """Run the function; see `Tool.run`.

        Raises:
            AylluError: what the function raised; `EngineError` for what is none of ours.
            DeadlineExceeded: it took too long.
        """
        said = _read(await self._children.ask(encode(request.arguments)))
        if isinstance(said, Answered):
            return said.content
        raise _error_of(said)

    def _described(self, line: bytes) -> None:
        said = _read(line)
        if not isinstance(said, Described):
            raise _error_of(said)
        self.description = self.description or said.description
        # A child that comes later may have found another one: the worker offers what it read first.
        self.parameters = self.parameters or said.parameters


def _read(line: bytes) -> FromChild:
    try:
        return from_child.decode(line)
    except msgspec.DecodeError as error:
        raise nonsense() from error


def _error_of(said: FromChild) -> Exception:
    return error_from(said.error) if isinstance(said, Failed) else nonsense()
