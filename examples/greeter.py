"""An own actor: a Protocol, and a class.

In this folder, `ayllu worker --import greeter` serves it beside a deployment, and `ayllu up --import greeter` as a part of one.
`python examples/greeter.py "$(cat .ayllu/bus.url)"` serves it from a program of one's own, until Ctrl-C. Then
`ayllu call greeter.greet '{"name": "Quispe"}'` calls it, and so does examples/call_greeter.py.
"""

import sys
from collections.abc import AsyncIterator
from typing import Protocol

import anyio

from ayllu.bus import connect, serve
from ayllu.schemas import webmethod


class Greeter(Protocol):
    """Greets people."""

    @webmethod(route="/greeter/greet", tool=True, idempotent=True)
    async def greet(self, name: str) -> str:
        """Return a greeting."""
        ...

    @webmethod(route="/greeter/spell")
    def spell(self, name: str) -> AsyncIterator[str]:
        """Spell a name, letter by letter."""
        ...


class GreeterActor(Greeter):
    """Greets people in Quechua."""

    async def greet(self, name: str) -> str:
        return f"Allinllachu, {name}!"

    async def spell(self, name: str) -> AsyncIterator[str]:
        for letter in name:
            yield letter.upper()


async def main(url: str) -> None:
    async with connect(url, name="greeter") as bus, anyio.create_task_group() as tasks:
        await tasks.start(serve, bus, GreeterActor())
        print("the greeter is ready", flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
