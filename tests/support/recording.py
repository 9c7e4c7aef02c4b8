"""Records journals of turns: ``PYTHONPATH=tests python -m support.recording`` writes those that the tests read ever after.

Only new kinds of journals are to be recorded: what an older version wrote is what the tests are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import anyio
import msgspec
from support.agents import Agents, asked, running_agents
from support.weather import CONFIG, FORECAST, NOW, WeatherActor, weather_script

from ayllu.actors.agents.entries import durable_claims, standing_records
from ayllu.actors.agents.records import JournalRecord
from ayllu.actors.agents.step import Event
from ayllu.actors.agents.turn import Turn
from ayllu.actors.engines.scripted import Script
from ayllu.bus.bus import local_bus
from ayllu.schemas import AylluError, ErrorInfo, TurnStatus, encode

FOLDER = Path(__file__).parents[1] / "actors/agents/journals"
RECORDS: msgspec.json.Decoder[JournalRecord] = msgspec.json.Decoder(JournalRecord)


class Came(msgspec.Struct):
    """What a journal came to."""

    status: TurnStatus
    events: list[Event]
    error: ErrorInfo | None = None


def came_to(records: Sequence[JournalRecord]) -> Came:
    turn = Turn()
    events = [event for record in records for event in turn.apply(record)]
    return Came(turn.status, events, turn.ended.error if turn.ended else None)


async def record_all() -> None:
    """Record journals anew."""
    FOLDER.mkdir(exist_ok=True)
    await record("answer", "echo")
    await record("tools", cast(Script, weather_script(NOW, FORECAST)))
    await record("cancelled", "stall:3", cancel=True)
    await record("taken-over", "stall:3", take_over=True, cancel=True)


async def record(
    name: str, script: Script | str, *, cancel: bool = False, take_over: bool = False
) -> None:
    async with local_bus() as bus:
        async with running_agents(bus, WeatherActor(), script=script, executors=0) as agents:
            _, scope = await agents.executor()
            await agents.create("al", **CONFIG)
            agents.tasks.start_soon(_ask, agents)
            if cancel:
                await agents.engine.wait_for(lambda engine: engine.running == 1)
                await anyio.sleep(0.2)
            if take_over:
                scope.cancel()
                await agents.executor()
                await agents.engine.wait_for(lambda engine: engine.started == 2)
                await anyio.sleep(0.2)
            if cancel:
                await agents.turns.cancel("al", "t", "enough")
            await anyio.sleep(0.5)
            async with standing_records(bus, durable_claims(bus), "al", "t") as found:
                records = [one async for _, one in found]
    lines = [encode(one) for one in records]
    (FOLDER / f"{name}.jsonl").write_bytes(b"\n".join([*lines, encode(came_to(records))]) + b"\n")


async def _ask(agents: Agents) -> None:
    with suppress(AylluError):
        await agents.system.execute(asked("al", "one two", turn_id="t"))


if __name__ == "__main__":
    anyio.run(record_all)
