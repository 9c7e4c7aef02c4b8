"""Follow a turn of an agent with nothing but the websocket protocol, over a connection that is closed in the middle.

Run `ayllu up` first. `stack.agent(...).turn(...)` of the client does all of this by itself; this is what authors of other
clients do: note the position of each event, and follow on from there.
"""

import json
import sys
from itertools import count
from typing import Any

import anyio
from websockets.asyncio.client import ClientConnection, connect

AGENT = {
    "uuid": "counter",
    "instructions": "Answer in one sentence.",
    "model": "smollm2",
    "max_tokens": 32,
}
QUESTION = {"role": "user", "content": "Which city is the capital of France?"}
numbers = count(1)


async def send(socket: ClientConnection, method: str, **params: Any) -> None:
    request = {"jsonrpc": "2.0", "id": next(numbers), "method": method, "params": params}
    await socket.send(json.dumps(request))


async def follow(url: str, turn: str, epoch: int, index: int, most: int) -> tuple[int, int, bool]:
    """Print so many events from a position; return the next position, and whether the turn has ended."""
    async with connect(url, proxy=None) as socket:
        await send(
            socket,
            "agentic_system.turn.events",
            agent_id="counter",
            turn_id=turn,
            epoch=epoch,
            index=index,
        )
        async for frame in socket:
            message = json.loads(frame)
            if "error" in message:
                sys.exit(message["error"]["message"])
            for told in message.get("params", {}).get("events", []):
                epoch = told["epoch"]
                if "event" not in told:  # Where the turn stands; at its end, the whole turn.
                    index = told["index"]
                    if told["turn"]["status"] in ("completed", "cancelled", "failed"):
                        return epoch, index, True
                    continue
                index = told["index"] + 1
                print(told["event"].get("response_text_delta", ""), end="", flush=True)
                most -= 1
                if most == 0:
                    return epoch, index, False  # The connection is closed here; the turn goes on.
    return epoch, index, False


async def main(url: str) -> None:
    url = url.replace("http", "ws", 1) + "/ws"
    async with connect(url, proxy=None) as socket:
        await send(socket, "agentic_system.create", **AGENT)
        await socket.recv()  # Perhaps it is there already.
        await send(
            socket,
            "agentic_system.execute",
            agent_uuid="counter",
            turn_id=sys.argv[2],
            messages=[QUESTION],
            stream=True,
        )
        first = json.loads(await socket.recv())  # From the first event on, the turn is accepted.
        if "error" in first:
            sys.exit(first["error"]["message"])
    epoch, index, ended, connections = 0, 0, False, 0
    while not ended:
        epoch, index, ended = await follow(url, sys.argv[2], epoch, index, most=3)
        connections += 1
    print(f"\n{index} events over {connections} connections")


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
