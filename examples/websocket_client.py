"""Stream a chat over the websocket. Run `ayllu up` first."""

import sys

import anyio

from ayllu.client import connect
from ayllu.schemas import ChatCompletionRequest, Dialog, Message, Role


async def main(url: str) -> None:
    question = Message(role=Role.user, content="Which city is the capital of France?")
    request = ChatCompletionRequest(model="smollm2", dialog=Dialog(message=question), max_tokens=32)
    async with connect(url) as stack:
        async for event in stack.stream_chat_completion(request):
            print(event.text_delta, end="", flush=True)
    print()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8321")
