"""Idle websockets on one gateway: resident memory of each. ``python -m benchmarks.idle URL`` holds the client's ends."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import msgspec
from websockets.asyncio.client import ClientConnection, connect

from .child import answer_lines, helper, run, running
from .numbers import number
from .topology import Place, gateway

STEPS = (500, 1000, 2000, 5000)
AT_ONCE = 50
SPARE_FDS = 200
SETTLE_SECONDS = 0.5


class Held(msgspec.Struct):
    """How many connections are open, and how long it took to open the last ones."""

    count: int
    seconds: float


def raise_limit() -> int:
    """Let this process and its children have as many files as they may, and return how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20


async def hold(url: str) -> None:
    """Open as many connections as each line says, and keep them."""
    connections: list[ClientConnection] = []
    limit = anyio.CapacityLimiter(AT_ONCE)

    async def open_one() -> None:
        async with limit:
            # Pings would make the connections less than idle.
            connections.append(await connect(url, compression=None, ping_interval=None))

    async def answer(line: bytes) -> Held:
        begun = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(int(line) - len(connections)):
                tasks.start_soon(open_one)
        return Held(len(connections), time.perf_counter() - begun)

    await answer_lines(answer)


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError(f"the process {pid} has no resident memory")


async def measure_idle(place: Place, steps: tuple[int, ...] = STEPS) -> dict[str, Any]:
    """Open more and more connections, and measure the gateway's memory at each step."""
    allowed = raise_limit() - SPARE_FDS
    found: list[dict[str, float]] = []
    async with gateway(place) as (edge, url):
        # The first ones load what is loaded once.
        async with running(helper("idle", url), place.log("holder")) as holder:
            await holder.ask(min(100, *steps), Held)
        async with running(helper("idle", url), place.log("holder")) as holder:
            empty = resident_kib(edge.pid)
            opened = 0
            for count in (step for step in steps if step <= allowed):
                held = await holder.ask(count, Held)
                await anyio.sleep(SETTLE_SECONDS)
                grown = resident_kib(edge.pid) - empty
                found.append(
                    {
                        "connections": held.count,
                        "resident_mib": round(grown / 1024, 2),
                        "kib_per_connection": round(grown / held.count, 2),
                        "opened_per_second": round((held.count - opened) / held.seconds),
                    }
                )
                opened = held.count
    return {"gateway_mib": round(empty / 1024, 1), "allowed": allowed, "steps": found}


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    return [
        ("gateway without connections, MiB", number(result["gateway_mib"])),
        *(
            (
                f"{step['connections']} idle websockets",
                f"{number(step['kib_per_connection'])} KiB each ({number(step['resident_mib'])} MiB in all), "
                f"{number(step['opened_per_second'])} opened a second",
            )
            for step in result["steps"]
        ),
    ]


if __name__ == "__main__":
    run(hold, sys.argv[1])
