"""The client of servers that stream chats over HTTP/1.1, in OpenAI's protocol or in ours: on sockets, in a process of its own.

It does as little as a client can, so that what is measured is the server. Each stream has a connection of its own: llama.cpp's
server closes them.
"""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

import anyio
import msgspec

from .child import answer_lines, run
from .load import STREAM_SECONDS, Heard, Load

EVENT = b"data: {"
CONTENT = (b'"content":"', b'"content": "', b'"text":"', b'"text": "', b'"text_delta":"')
ENDS = (b"data: [DONE]", b"event: result")
READ = 1 << 16


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    usage: _Usage | None = None


async def answer(line: bytes) -> Heard:
    """Carry a load; `Load.requests` are bodies, `Heard.events` counts the tokens that the usage tells."""
    load = msgspec.json.decode(line, type=Load)
    heard = Heard()
    begun = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for body in load.requests:
            tasks.start_soon(_streams, load.url, body.encode(), load.rounds, heard)
    heard.seconds = time.perf_counter() - begun
    return heard


async def _streams(url: str, body: bytes, rounds: int, heard: Heard) -> None:
    parts = urlsplit(url)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    for _ in range(rounds):
        with anyio.fail_after(STREAM_SECONDS):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            try:
                await _stream(reader, writer, request, heard)
            finally:
                writer.close()


async def _stream(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, heard: Heard
) -> None:
    sent = time.perf_counter()
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the server refused: {head!r} {await reader.read(2000)!r}")
    said = b""
    begun = False
    while not any(end in said[-2048:] for end in ENDS):
        data = await reader.read(READ)
        if not data:
            raise RuntimeError(f"the server ended the stream: {said[-500:]!r}")
        said += data
        heard.frames += 1
        if not begun and _says_something(said):
            begun = True
            heard.first.append(time.perf_counter() - sent)
    heard.whole.append(time.perf_counter() - sent)
    heard.events += _tokens(said)


def _says_something(said: bytes) -> bool:
    """Tell whether a first piece of text has come: the first chunk of a chat only names its role."""
    return any(said.count(mark) > said.count(mark + b'"') for mark in CONTENT)


def _tokens(said: bytes) -> int:
    """Return the tokens of an answer as its usage tells them, or else the events that it came in."""
    position = said.rfind(b'"usage":')
    while position >= 0:
        begin = said.rfind(EVENT, 0, position) + len(EVENT) - 1
        end = said.find(b"\n", position)
        usage = msgspec.json.decode(said[begin:end].strip(), type=_Chunk).usage
        if usage is not None and usage.completion_tokens:
            return usage.completion_tokens
        position = said.rfind(b'"usage":', 0, begin)
    return said.count(EVENT)


if __name__ == "__main__":
    run(answer_lines, answer)
