"""The bare pipe: what the same tokens cost without ayllu.

A publisher, nats-server, and a nats-py subscription straight into a uvicorn websocket; nothing is checked, counted,
bounded, cancelled or recovered. The bytes of an event are those that ayllu's actor publishes.

    python -m benchmarks.pipe publisher BUS TOKENS
    python -m benchmarks.pipe gateway BUS FD
"""

from __future__ import annotations

import asyncio
import socket
import sys

import nats
import uvicorn
from nats.aio.client import Client
from nats.aio.msg import Msg
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from .child import run

SUBJECT = "pipe"
END = b'{"jsonrpc":"2.0","id":1,"result":{}}'


async def publish(bus: str, tokens: int) -> None:
    """Answer each request with events. After each the loop runs on, as it does behind anything that generates."""
    client = await nats.connect(bus)
    events = [b'{"text_delta":" %d"}' % number for number in range(1, tokens + 1)]
    events.append(b'{"text_delta":"","stop_reason":"finished_ok"}')
    streams: set[asyncio.Task[None]] = set()

    async def stream(reply: str) -> None:
        for event in events:
            await client.publish(reply, event)
            await asyncio.sleep(0)
        await client.publish(reply, END)

    async def start(message: Msg) -> None:
        task = asyncio.create_task(stream(message.reply))
        streams.add(task)
        task.add_done_callback(streams.discard)

    await client.subscribe(SUBJECT, cb=start)
    await client.flush()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


async def serve(bus: str, descriptor: int) -> None:
    """Forward every message to the websocket that it is for."""
    client = await nats.connect(bus)

    async def forward(websocket: WebSocket) -> None:
        await _forward(client, websocket)

    app = Starlette(routes=[WebSocketRoute("/ws", forward)])
    config = uvicorn.Config(
        app,
        ws="websockets-sansio",
        loop="uvloop",
        lifespan="off",
        log_level="warning",
        ws_per_message_deflate=False,
    )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await uvicorn.Server(config).serve([socket.socket(fileno=descriptor)])


async def _forward(client: Client, websocket: WebSocket) -> None:
    await websocket.accept()
    inbox = client.new_inbox()

    async def send(message: Msg) -> None:
        await websocket.send({"type": "websocket.send", "text": message.data.decode()})

    subscription = await client.subscribe(inbox, cb=send)
    try:
        while True:
            request = await websocket.receive_text()
            await client.publish(SUBJECT, request.encode(), reply=inbox)
    except WebSocketDisconnect:
        await subscription.unsubscribe()


if __name__ == "__main__":
    if sys.argv[1] == "publisher":
        run(publish, sys.argv[2], int(sys.argv[3]))
    else:
        run(serve, sys.argv[2], int(sys.argv[3]))
