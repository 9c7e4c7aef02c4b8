"""Clients that never read beside clients that do: what they cost the others, and the gateway's memory.

``python -m benchmarks.unread URL`` holds the ends of those that do not read.
"""

from __future__ import annotations

import socket
import sys
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import anyio
import numpy as np
from anyio.abc import SocketStream

from .child import Child, answer_lines, helper, run, running
from .idle import resident_kib
from .load import Heard, Load
from .numbers import Measure, alternate, number, ratios, spread
from .topology import LIMITS, Place, chat_frame, client, gateway, inference

MODELS = """
[[models]]
name = "count"
engine = "scripted"
source = "count:128"
slots = 64

[[models]]
name = "endless"
engine = "scripted"
source = "count:100000"
slots = 64
context = 200000
"""
PATIENT = LIMITS + "write_timeout = 300.0\n"
"""The gateway drops clients that take nothing after 15 seconds; here it bears them, so that they are there throughout."""
CLIENTS = 50
ROUNDS = 6
RECEIVE_BYTES = 4096
"""What the kernel takes in for a client that does not read: little, so that the gateway soon feels it."""
SETTLE_SECONDS = 4.0
"""Until the kernel's buffers are full and all streams stand still."""


async def hold(url: str) -> None:
    """Open as many connections as each line says, ask for an endless stream on each, and never read."""
    address = urlsplit(url)
    frame = chat_frame("endless", "Count.").encode()
    connections: list[SocketStream] = []

    async def open_one() -> None:
        bare = socket.socket()
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        bare.connect((address.hostname, address.port))
        stream = await SocketStream.from_socket(bare)
        await stream.send(
            b"GET /ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        read = b""
        while b"\r\n\r\n" not in read:
            read += await stream.receive()
        # A masked text frame of up to 64 KiB; the mask is zero, which changes nothing.
        await stream.send(b"\x81\xfe" + len(frame).to_bytes(2) + bytes(4) + frame)
        connections.append(stream)

    async def answer(line: bytes) -> int:
        while len(connections) > int(line):
            await connections.pop().aclose()
        while len(connections) < int(line):
            await open_one()
        return len(connections)

    await answer_lines(answer)


async def measure_unread(place: Place, pairs: int, clients: int = CLIENTS) -> dict[str, Any]:
    """Measure the readers' times, and the gateway's memory, with and without others that never read."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(inference(place, MODELS))
        edge, url = await stack.enter_async_context(gateway(place, limits=PATIENT))
        load = await stack.enter_async_context(client(place))
        deaf = await stack.enter_async_context(running(helper("unread", url), place.log("deaf")))
        question = Load(url, [chat_frame("count", "Count.")] * clients, ROUNDS)

        def beside(count: int) -> Measure:
            return lambda: _measure(load, question, deaf, edge, count)

        values = await alternate({"alone": beside(0), "beside": beside(clients)}, pairs)
    return {
        "clients": clients,
        **{
            name: {quantity: spread(runs) for quantity, runs in quantities.items()}
            for name, quantities in values.items()
        },
        **{
            f"ratio_{quantity}": ratios(values["beside"][quantity], values["alone"][quantity])
            for quantity in ("p99_first_ms", "p99_whole_ms")
        },
        "kib_of_each": spread(
            [
                (with_them - alone) / clients
                for with_them, alone in zip(
                    values["beside"]["gateway_kib"], values["alone"]["gateway_kib"], strict=True
                )
            ]
        ),
    }


async def _measure(
    load: Child, question: Load, deaf: Child, edge: Child, count: int
) -> dict[str, float]:
    await deaf.ask(count, int)
    await anyio.sleep(SETTLE_SECONDS if count else 0.5)
    heard = await load.ask(question, Heard)
    return {
        "p99_first_ms": 1000 * float(np.percentile(heard.first, 99)),
        "p99_whole_ms": 1000 * float(np.percentile(heard.whole, 99)),
        "gateway_kib": resident_kib(edge.pid),
    }


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    lines = []
    for name, what in (("alone", "alone"), ("beside", "beside those that never read")):
        lines += [
            (f"first token, p99, ms, {what}", str(result[name]["p99_first_ms"])),
            (f"whole stream, p99, ms, {what}", str(result[name]["p99_whole_ms"])),
            (f"gateway, MiB, {what}", number(result[name]["gateway_kib"].median / 1024)),
        ]
    return [
        *lines,
        ("first token, p99: beside / alone", str(result["ratio_p99_first_ms"])),
        ("whole stream, p99: beside / alone", str(result["ratio_p99_whole_ms"])),
        ("memory for each that never reads, KiB", str(result["kib_of_each"])),
    ]


if __name__ == "__main__":
    run(hold, sys.argv[1])
