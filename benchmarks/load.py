"""The client of all benchmarks: raw websockets, in a process of its own, on connections that stay open."""

from __future__ import annotations

import time

import anyio
import msgspec
from websockets.asyncio.client import ClientConnection, connect

from .child import answer_lines, run

RESPONSE = '{"jsonrpc":"2.0","id":'
EVENT = 'text_delta"'
"""Ends the name of the field in both chats and turns."""
STREAM_SECONDS = 120.0


class Load(msgspec.Struct):
    """What to do: on each of ``len(requests)`` connections, a number of streams one after the other.

    Attributes:
        url: the address of the websocket.
        requests: the frame that each connection sends; a response frame ends the stream.
        rounds: how many streams each connection has.
    """

    url: str
    requests: list[str]
    rounds: int


class Heard(msgspec.Struct):
    """What came of it.

    Attributes:
        seconds: from the first request to the end of the last stream.
        events: how many events came, the last one of each stream included.
        frames: in how many frames.
        first: seconds from request to first event, of each stream.
        whole: seconds from request to response, of each stream.
    """

    seconds: float = 0.0
    events: int = 0
    frames: int = 0
    first: list[float] = []
    whole: list[float] = []


class Client:
    """Keeps its connections from one load to the next."""

    def __init__(self) -> None:
        self._open: dict[str, list[ClientConnection]] = {}

    async def answer(self, line: bytes) -> Heard:
        """Carry a load."""
        load = msgspec.json.decode(line, type=Load)
        connections = self._open.setdefault(load.url, [])
        while len(connections) < len(load.requests):
            connections.append(await connect(load.url, compression=None, max_queue=None))
        heard = Heard()
        begun = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for connection, request in zip(connections, load.requests, strict=False):
                tasks.start_soon(_streams, connection, request, load.rounds, heard)
        heard.seconds = time.perf_counter() - begun
        return heard


async def _streams(connection: ClientConnection, request: str, rounds: int, heard: Heard) -> None:
    for _ in range(rounds):
        with anyio.fail_after(STREAM_SECONDS):
            await _stream(connection, request, heard)


async def _stream(connection: ClientConnection, request: str, heard: Heard) -> None:
    sent = time.perf_counter()
    await connection.send(request)
    events = frames = 0
    while not (frame := str(await connection.recv())).startswith(RESPONSE):
        if not events:
            heard.first.append(time.perf_counter() - sent)
        events += frame.count(EVENT)
        frames += 1
    if '"error":' in frame:
        raise RuntimeError(f"a stream ended in an error: {frame}")
    heard.whole.append(time.perf_counter() - sent)
    heard.events += events
    heard.frames += frames


if __name__ == "__main__":
    run(answer_lines, Client().answer)
