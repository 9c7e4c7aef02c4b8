"""A pipeline of three agents, each started by the end of the one before it, and the first by an event of our own.

Run `ayllu up` first; then `python examples/pipeline.py http://127.0.0.1:8321 "$(cat ~/.local/share/ayllu/bus.url)"`. Nobody
calls an agent here: triggers do, so any program that publishes an order starts it all, whether this one runs or not.
"""

import json
import sys
from contextlib import suppress

import anyio
import nats

from ayllu.client import connect
from ayllu.schemas import (
    AgenticSystemCreateRequest,
    Conflict,
    Limits,
    TriggerCreateRequest,
    Triggers,
    TurnEnded,
    decode,
)

AGENTS = {
    "shop-clerk": "Confirm the order in one short sentence.",
    "shop-packer": "Say in one short sentence how you pack what was ordered.",
    "shop-courier": "Thank the customer in one short sentence.",
}
TRIGGERS = [
    TriggerCreateRequest(
        name="shop-order",
        agent_id="shop-clerk",
        subject="shop.order",
        template="${customer} orders ${count} x ${item.name}.",
        limits=Limits(steps=10, tokens=4000),  # Of all three together.
    ),
    TriggerCreateRequest(
        name="shop-confirmed",
        agent_id="shop-packer",
        subject="turn.shop-clerk.completed",
        template="$text",
    ),
    TriggerCreateRequest(
        name="shop-packed",
        agent_id="shop-courier",
        subject="turn.shop-packer.completed",
        template="$text",
    ),
]
ORDER = {"customer": "Ada", "count": 2, "item": {"name": "coca tea"}}


async def prepare(url: str) -> None:
    """Create agents and triggers; where they are there already, this changes nothing."""
    async with connect(url) as stack:
        for agent, instructions in AGENTS.items():
            config = AgenticSystemCreateRequest(
                uuid=agent, instructions=instructions, model="smollm2", max_tokens=32
            )
            with suppress(Conflict):
                await stack.agentic_system.create(config)
        for trigger in TRIGGERS:
            await stack.api(Triggers).create(trigger)


async def main(url: str, bus_url: str) -> None:
    """Publish an order, and tell what comes of it."""
    await prepare(url)
    connection = await nats.connect(bus_url)
    events = await connection.subscribe("ayllu.v1.event.turn.>")
    # Stored before it is answered: from here on it is taken care of.
    stored = await connection.jetstream().publish(
        "ayllu.v1.event.shop.order", json.dumps(ORDER).encode()
    )
    print(f"order {stored.seq}: {ORDER}")
    with anyio.fail_after(120):
        async for message in events.messages:
            turn = decode(message.data, TurnEnded)
            if turn.cause is None or turn.agent_uuid not in AGENTS:
                continue
            print(f"{turn.cause.chain}. {turn.agent_uuid} {turn.status}: {turn.text!r}")
            print(f"   for {turn.cause.subject}; {turn.left.steps} steps are left")
            if turn.status != "completed":
                sys.exit(f"it ends here: {turn.error}")
            if turn.cause.chain == len(AGENTS):
                break
    await connection.close()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
