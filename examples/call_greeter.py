"""Call the actor of examples/greeter.py from another process, through the gateway or over the bus.

`python examples/call_greeter.py http://127.0.0.1:8321`, or `python examples/call_greeter.py "$(cat .ayllu/bus.url)"`.
"""

import sys

import anyio
from greeter import Greeter

from ayllu.bus import client
from ayllu.bus import connect as connect_to_bus
from ayllu.client import connect


async def talk(greeter: Greeter) -> None:
    print(await greeter.greet(name="Quispe"))
    async for letter in greeter.spell(name="Quispe"):
        print(letter, end=" ")
    print()


async def main(url: str) -> None:
    if url.startswith("http"):
        async with connect(url) as stack:
            await talk(stack.api(Greeter))
    else:
        async with connect_to_bus(url) as bus:
            await talk(client(Greeter, bus, timeout=10))


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
