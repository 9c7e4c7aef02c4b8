"""Actors that others write: how one is made out of its class, with what it needs around it."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from ..bus.bus import Bus

BUS_PARAMETER = "bus"
"""The one parameter that the constructor of an own actor may need."""


def check_constructor(actor: type) -> None:
    """Refuse a class whose constructor needs what nobody can give it.

    Raises:
        TypeError: it does; the message names the parameters.
    """
    needed = [
        name
        for name, parameter in inspect.signature(actor).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and (name != BUS_PARAMETER or parameter.kind is parameter.POSITIONAL_ONLY)
    ]
    if needed:
        raise TypeError(
            f"{actor.__name__}() needs {', '.join(needed)}; it may take nothing, or the `{BUS_PARAMETER}`"
        )


@asynccontextmanager
async def made(actor: type, bus: Bus) -> AsyncIterator[object]:
    """Make an actor out of its class; one that is an async context manager is entered, and left at the end of the block."""
    takes_bus = BUS_PARAMETER in inspect.signature(actor).parameters
    async with AsyncExitStack() as stack:
        one = actor(bus=bus) if takes_bus else actor()
        if isinstance(one, AbstractAsyncContextManager):
            await stack.enter_async_context(one)
        yield one
