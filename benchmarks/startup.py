"""How long ``ayllu up`` takes to its ready line, on an empty data directory."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .child import AYLLU, running
from .numbers import Measure, alternate, spread
from .topology import REAL, SCRIPTED, Place


async def measure_startup(
    place: Place, pairs: int, *, models: dict[str, str] | None = None
) -> dict[str, Any]:
    """Measure the seconds to the ready line, with the scripted engine and with the real model."""

    def of(text: str) -> Measure:
        return lambda: _start(place, place.config(text))

    chosen = models or {"scripted": SCRIPTED, "model": REAL}
    values = await alternate({name: of(text) for name, text in chosen.items()}, pairs)
    return {name: spread(runs["seconds"]) for name, runs in values.items()}


async def _start(place: Place, config: Path) -> dict[str, float]:
    with TemporaryDirectory(prefix="data", dir=place.folder) as data:
        command = [AYLLU, "up", "--port", "0", "--data-dir", data, "--config", str(config)]
        begun = time.perf_counter()
        async with running(command, place.log("up")):
            return {"seconds": time.perf_counter() - begun}


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of the table."""
    return [(f"`ayllu up` with {name}, s", str(runs)) for name, runs in result.items()]
