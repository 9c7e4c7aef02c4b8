"""The main job on real input: start everything, and stream a chat from a real language model over a websocket.

`make demo` runs it. It starts `ayllu up` in a folder of its own, asks two questions at once on one socket, prints each
event as it arrives, and ends what it started.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio

from ayllu.client import connect
from ayllu.schemas import ChatCompletionRequest, Dialog, Message, Role, encode

QUESTIONS = ["Which city is the capital of France?", "Write one sentence about the sea."]


async def ask(url: str, number: int, question: str, began: float) -> int:
    """Print each event of one chat, and return how many tokens it had."""
    message = Message(role=Role.user, content=question)
    request = ChatCompletionRequest(model="smollm2", dialog=Dialog(message=message), max_tokens=48)
    tokens = 0
    async with connect(url) as stack:
        async for event in stack.stream_chat_completion(request):
            print(f"{time.monotonic() - began:6.3f}s  chat {number}  {encode(event).decode()}")
            tokens = event.usage.completion_tokens if event.usage else tokens
    return tokens


async def chat(url: str) -> None:
    """Ask all questions at once."""
    tokens: list[int] = []

    async def one(number: int, question: str) -> None:
        tokens.append(await ask(url, number, question, began))

    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        for number, question in enumerate(QUESTIONS, start=1):
            tasks.start_soon(one, number, question)
    seconds = time.monotonic() - began
    print(f"\n{sum(tokens)} tokens in {seconds:.2f} s: {sum(tokens) / seconds:.0f} tokens/s")


def main() -> int:
    began = time.monotonic()
    ayllu = Path(sys.executable).with_name("ayllu")
    with tempfile.TemporaryDirectory(prefix="ayllu-demo-") as folder:
        command = [str(ayllu), "up", "--port", "0", "--data-dir", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                line = server.stdout.readline().split()
                if line[:1] != ["ready"]:
                    print("ayllu up did not start; what it said stands above", file=sys.stderr)
                    return 1
                print(f"{line[1]} is ready after {time.monotonic() - began:.1f} s\n")
                anyio.run(chat, line[1])
            finally:
                server.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
