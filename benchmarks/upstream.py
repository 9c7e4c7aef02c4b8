"""The engine `openai` in front of an instant server, through the whole path, beside a client that asks that server itself."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

from .child import helper, running
from .instant_upstream import MODEL
from .load import Load
from .numbers import alternate, ratios
from .servers import body
from .streams import ROUNDS, TOKENS, first_token_later, measure_load, spreads, system_rows
from .topology import Place, chat_frame, client, gateway, inference

MODELS = f"""
[[models]]
name = "{MODEL}"
engine = "openai"
source = "{{url}}"
slots = 64
"""


async def measure_upstream(
    place: Place, pairs: int, streams: int, *, tiny: bool = False
) -> dict[str, Any]:
    """Measure tokens a second and the time to the first one, through ayllu and from the server itself."""
    rounds = 1 if tiny else ROUNDS.get(streams, 3)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        server = await enter(
            running(helper("instant_upstream", str(TOKENS)), place.log("upstream"))
        )
        url = server.ready.split()[1]
        actor = await enter(inference(place, MODELS.format(url=url)))
        edge, websocket = await enter(gateway(place))
        load = await enter(client(place))
        http_load = await enter(running(helper("http_load"), place.log("http_load")))
        ours = Load(websocket, [chat_frame(MODEL, "Count.")] * streams, rounds)
        bare = Load(f"{url}/chat/completions", [body(0, TOKENS)] * streams, rounds)
        parts = {"client": load, "gateway": edge, "actor": actor, "upstream": server}
        values = await alternate(
            {
                "ayllu": lambda: measure_load(load, ours, parts),
                "direct": lambda: measure_load(
                    http_load, bare, {"client": http_load, "upstream": server}
                ),
            },
            pairs,
        )
    return {
        **spreads(values),
        "ratio": ratios(
            values["ayllu"]["tokens_per_second"], values["direct"]["tokens_per_second"]
        ),
        "first_token_later_ms": first_token_later(values, "ayllu", "direct"),
    }


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    return [
        *system_rows(result, "ayllu", "direct"),
        ("ayllu / direct", str(result["ratio"])),
        ("first token later than the server's, ms", str(result["first_token_later_ms"])),
    ]
