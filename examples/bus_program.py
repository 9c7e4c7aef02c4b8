"""Ask a model from the bus, with nothing but a NATS client: publish a request, subscribe to its events.

The bus of `ayllu up` tells its address, with credentials, in the file `bus.url` of its data directory:
`python examples/bus_program.py "$(cat .ayllu/bus.url)"`.
"""

import asyncio
import json
import sys

import nats


async def main(url: str) -> None:
    connection = await nats.connect(url)
    inbox = connection.new_inbox()
    events = await connection.subscribe(inbox)
    question = {"role": "user", "content": "Which city is the capital of France?"}
    request = {"model": "smollm2", "dialog": {"message": question}, "max_tokens": 32}
    # The model is the last token of the subject, so that an actor that serves it gets the request.
    subject = "ayllu.v1.op.chat_completion.stream.smollm2"
    await connection.publish(subject, json.dumps(request).encode(), reply=inbox)
    async for message in events.messages:
        if not message.data:  # The end of the stream.
            break
        event = json.loads(message.data)
        if "error" in event or (message.headers or {}).get("Status") == "503":
            sys.exit(f"failed: {event}")
        print(event.get("text_delta", ""), end="", flush=True)
    print()
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
