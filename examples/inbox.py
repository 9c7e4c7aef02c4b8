"""Tell an agent something with nothing but a NATS client: publish a message to its inbox, and hear the answer.

The bus of `ayllu up` tells its address, with credentials, in the file `bus.url` of its data directory:
`python examples/inbox.py "$(cat .ayllu/bus.url)" support`. examples/inbox.mjs is the same in JavaScript.
"""

import asyncio
import json
import sys
import uuid

import nats


async def main(url: str, agent: str) -> None:
    connection = await nats.connect(url)
    reply = connection.new_inbox()
    answers = await connection.subscribe(reply)
    message = {"role": "user", "content": "Which city is the capital of France?"}
    # The id makes it safe to publish again; the answer goes where the header says.
    headers = {"Nats-Msg-Id": str(uuid.uuid4()), "Ayllu-Reply-To": reply}
    subject = f"ayllu.v1.agent.{agent}.inbox"
    # The bus answers once the message is stored: from here on, the turn comes, whatever dies.
    await connection.request(subject, json.dumps(message).encode(), timeout=5, headers=headers)
    answer = json.loads((await answers.next_msg(timeout=60)).data)
    if "error" in answer:
        sys.exit(answer["error"]["message"])
    print(answer["turn"]["response_message"]["content"])
    # Every event of the turn, from the first one on, also while it runs.
    follow = {"agent_id": agent, "turn_id": headers["Nats-Msg-Id"]}
    events = await connection.subscribe(connection.new_inbox())
    operation = "ayllu.v1.op.agentic_system.turn.events"
    await connection.publish(operation, json.dumps(follow).encode(), reply=events.subject)
    async for event in events.messages:
        if not event.data:  # The end of the stream.
            break
        told = json.loads(event.data)
        if "event" in told:
            print(told["index"], told["event"]["event_type"])
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
