"""OpenAI's protocol beside our own: the same scripted streams, through gateways that differ in nothing."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import msgspec

from .child import helper, running
from .load import Load
from .numbers import Measure, alternate, ratios
from .streams import first_token_later, measure_load, spreads, system_rows
from .topology import SCRIPTED, Place, chat_frame, client, gateway, inference

MODEL, QUESTION = "count", "Count."
ROUNDS = 8
SYSTEMS = ("openai", "sse", "websocket")


async def measure_openai_streams(
    place: Place, pairs: int, streams: int, *, tiny: bool = False
) -> dict[str, Any]:
    """Measure tokens a second and the time to the first one, over ``/v1``, over our own events, and over the websocket.

    The two that are server-sent events have the same client, and a connection for each stream.
    """
    async with AsyncExitStack() as stack:
        actor = await stack.enter_async_context(inference(place, SCRIPTED))
        edge, websocket_url = await stack.enter_async_context(gateway(place))
        http_load = await stack.enter_async_context(
            running(helper("http_load"), place.log("http_load"))
        )
        websocket_load = await stack.enter_async_context(client(place))
        url = websocket_url.replace("ws", "http", 1).removesuffix("/ws")
        frame = chat_frame(MODEL, QUESTION)
        params = msgspec.json.decode(frame)["params"]
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": QUESTION}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        requests = {
            "openai": (http_load, f"{url}/v1/chat/completions", body),
            "sse": (http_load, f"{url}/chat_completion", params),
            "websocket": (websocket_load, websocket_url, None),
        }

        def of(name: str) -> Measure:
            load, address, asked = requests[name]
            text = frame if asked is None else msgspec.json.encode(asked).decode()
            question = Load(address, [text] * streams, 1 if tiny else ROUNDS)
            return lambda: measure_load(
                load, question, {"client": load, "gateway": edge, "actor": actor}
            )

        values = await alternate({name: of(name) for name in SYSTEMS}, pairs)
    speed = {name: runs["tokens_per_second"] for name, runs in values.items()}
    return {
        **spreads(values),
        "ratio_sse": ratios(speed["openai"], speed["sse"]),
        "ratio_websocket": ratios(speed["openai"], speed["websocket"]),
        "first_token_later_ms": first_token_later(values, "openai", "sse"),
    }


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    return [
        *system_rows(result, *SYSTEMS),
        ("openai / sse", str(result["ratio_sse"])),
        ("openai / websocket", str(result["ratio_websocket"])),
        ("first token later than sse's, ms", str(result["first_token_later_ms"])),
    ]
