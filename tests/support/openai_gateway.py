"""OpenAI's own client against a gateway on a real socket, over a real nats-server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx2
from openai import AsyncOpenAI

from ayllu.actors.models import ModelsActor
from ayllu.bus import connect as connect_bus
from ayllu.bus.bus import Bus
from ayllu.bus.service import serve
from ayllu.runtime.config import GatewayConfig
from ayllu.runtime.gateway import serve_gateway
from ayllu.runtime.supervisor import open_listener, url_of


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that runs.

    Attributes:
        url: its HTTP address.
        bus: the bus behind it.
        client: OpenAI's client, which tries each request once.
        http: a plain HTTP client.
    """

    url: str
    bus: Bus
    client: AsyncOpenAI
    http: httpx2.AsyncClient

    @property
    def base_url(self) -> str:
        """What OpenAI's clients are told."""
        return self.url + "/v1"


@asynccontextmanager
async def running_openai(
    nats_url: str,
    *actors: object,
    config: GatewayConfig = GatewayConfig(),
    token: str = "none",
    seconds: float = 60,
) -> AsyncIterator[Gateway]:
    """Serve actors and a gateway, with clients; in the end no call is left on the bus."""
    listener = open_listener("127.0.0.1", 0)
    url = url_of(listener)
    with listener, anyio.fail_after(seconds):
        async with connect_bus(nats_url) as bus, anyio.create_task_group() as tasks:
            await tasks.start(serve, bus, ModelsActor(bus), *actors)
            await tasks.start(serve_gateway, bus, config, listener)
            headers = {"Authorization": f"Bearer {token}"}
            async with (
                AsyncOpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0) as client,
                httpx2.AsyncClient(base_url=url, timeout=20, headers=headers) as http,
            ):
                yield Gateway(url, bus, client, http)
            with anyio.fail_after(5):
                while bus.calls.open_count:  # The last cancels are on their way.
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()


def chunks_of(text: bytes | str) -> list[dict[str, Any]]:
    """Return the chunks of a stream, which ends as it must."""
    lines = (text.decode() if isinstance(text, bytes) else text).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def said(chunks: list[Mapping[str, Any]] | list[dict[str, Any]]) -> str:
    """Return the text of the chunks of a chat."""
    return "".join(
        choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]
    )
