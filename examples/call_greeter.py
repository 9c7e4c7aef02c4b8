"""Call the actor of examples/greeter.py from another process."""

import sys

import anyio
from greeter import Greeter

from ayllu.bus import client, connect


async def main(url: str) -> None:
    async with connect(url) as bus:
        greeter = client(Greeter, bus, timeout=10)
        print(await greeter.greet(name="Quispe"))
        async for letter in greeter.spell(name="Quispe"):
            print(letter, end=" ")
        print()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
