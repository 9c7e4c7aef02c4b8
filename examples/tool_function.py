"""Tools that are Python functions: their signature is the schema, their docstring the description.

In a worker of the deployment, each in processes of its own (Python must find this file: `PYTHONPATH=examples`):

    [[tools.functions]]
    function = "tool_function:parcel"

In a program of your own, on the bus of `ayllu up`: `python examples/tool_function.py "$(cat .ayllu/bus.url)"`. Either way:
`ayllu tools call parcel number=AB-123`, and agents may be given it.
"""

import sys
from typing import Literal

import anyio

from ayllu.actors.tools.actor import ToolsActor
from ayllu.actors.tools.functions.own import function_tool
from ayllu.bus import connect, serve
from ayllu.schemas import InvalidRequest

PARCELS = {"AB-123": ("Cusco", 2), "CD-456": ("Puno", 5)}


def parcel(number: str, unit: Literal["days", "hours"] = "days") -> dict[str, object]:
    """Tell where a parcel is, and when it will be delivered.

    Args:
        number: The number of the parcel, such as AB-123.
        unit: In which the time until the delivery is told.
    """
    if number not in PARCELS:
        raise InvalidRequest(f"there is no parcel {number}")  # The model reads this.
    place, days = PARCELS[number]
    return {"place": place, unit: days * (24 if unit == "hours" else 1)}


async def main(bus_url: str) -> None:
    async with connect(bus_url, name="parcels") as bus:
        print("the tool parcel is offered")
        await serve(bus, ToolsActor([function_tool(parcel, idempotent=True)]))


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
