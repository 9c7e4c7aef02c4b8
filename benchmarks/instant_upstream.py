"""A server that speaks OpenAI's protocol and answers at once, one event a token: ``python -m benchmarks.instant_upstream TOKENS``.

Its events are those of vLLM's server. It reads as little of a request as it can, and writes texts that it has made before; after
each its loop runs on, as it does behind anything that generates. It ends with its stdin.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from .child import run

MODEL = "instant"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
MODELS = b'{"object":"list","data":[{"id":"%b","object":"model"}]}' % MODEL.encode()


def chunks(tokens: int) -> list[bytes]:
    """Return the events of an answer, each as a chunk of HTTP."""
    choices = [_choice({"role": "assistant", "content": ""})]
    choices += [_choice({"content": f" {number}"}) for number in range(1, tokens)]
    choices.append(_choice({"content": f" {tokens}"}, "length"))
    events = [msgspec.json.encode(_event([choice])) for choice in choices]
    usage = {"prompt_tokens": 5, "total_tokens": 5 + tokens, "completion_tokens": tokens}
    events += [msgspec.json.encode({**_event([]), "usage": usage}), b"[DONE]"]
    written = [b"data: %b\n\n" % event for event in events]
    return [*(b"%x\r\n%b\r\n" % (len(one), one) for one in written), b"0\r\n\r\n"]


def _event(choices: list[object]) -> dict[str, object]:
    return {
        "id": "chatcmpl-8f2c1f6a0d6d4f0c9a3e5b7d1c2e4f60",
        "object": "chat.completion.chunk",
        "created": 1795833443,
        "model": MODEL,
        "choices": choices,
    }


def _choice(delta: dict[str, str], reason: str | None = None) -> dict[str, object]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


async def serve(tokens: int) -> None:
    """Serve until stdin ends."""
    answer = chunks(tokens)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET "):
                    said = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"
                    writer.write(said % (len(MODELS), MODELS))
                    continue
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length))
                writer.write(HEAD)
                for chunk in answer:
                    writer.write(chunk)
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        sys.stdout.write(f"ready http://127.0.0.1:{port}/v1\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    run(serve, int(sys.argv[1]))
