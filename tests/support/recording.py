"""Records journals of turns: ``PYTHONPATH=tests python -m support.recording`` writes those that the tests read ever after.

Only new kinds of journals are to be recorded: what an older version wrote is what the tests are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import anyio
import msgspec
from support.agents import Agents, asked, running_agents
from support.teams import call, calls, echoes, parts
from support.weather import CONFIG, FORECAST, NOW, TOOLS, WeatherActor, weather_script
from support.word_shield import WordShield, shield

from ayllu.actors.agents.entries import durable_claims, standing_records
from ayllu.actors.agents.records import JournalRecord
from ayllu.actors.agents.step import Event
from ayllu.actors.agents.turn import Turn
from ayllu.actors.attachments.settings import AttachmentsConfig
from ayllu.actors.engines.scripted import Script, Step
from ayllu.actors.shields.actor import ShieldsActor
from ayllu.bus.bus import local_bus
from ayllu.schemas import (
    AgenticSystemExecuteRequest,
    ApproveRequest,
    Attachment,
    AylluError,
    Delegation,
    ErrorInfo,
    Limits,
    Message,
    Role,
    SubAgent,
    ToolDefinition,
    TurnStatus,
    encode,
)

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
    await record_guarded("approval", APPROVAL, decide=True)
    await record_guarded("shields", SHIELDS)
    await record_guarded("withheld", WITHHELD)
    await record_team("team")


APPROVAL = {**CONFIG, "require_approval": {"weather.now"}}
SHIELDS = {
    **CONFIG,
    "available_tools": [
        ToolDefinition(
            "weather.now", input_shields=[shield("Lima")], output_shields=[shield("Cusco")]
        ),
        TOOLS[1],
    ],
    "input_shields": [shield("one", observe=True)],
    "output_shields": [shield("evening", observe=True)],
}
WITHHELD = {**CONFIG, "output_shields": [shield("evening")]}


async def record_guarded(name: str, config: dict[str, Any], *, decide: bool = False) -> None:
    """Record a turn with an attachment, among shields, or with calls that wait."""
    script = cast(Script, weather_script(NOW, FORECAST))
    async with local_bus() as bus:
        actors = (WeatherActor(), ShieldsActor([WordShield()]))
        with TemporaryDirectory() as folder:
            file = Path(folder, "note.txt")
            await anyio.Path(file).write_text("a note")
            attachment = Attachment(file.as_uri(), "text/plain")
            message = Message(role=Role.user, content=["one two", attachment])
            request = AgenticSystemExecuteRequest("al", [message], turn_id="t")
            async with running_agents(bus, *actors, script=script, executors=0) as agents:
                await agents.executor(attachments=AttachmentsConfig(roots=[folder]))
                await agents.create("al", **config)
                agents.tasks.start_soon(agents.system.execute, request)
                while decide:
                    found = [one async for one in agents.turns.approvals()]
                    if found:
                        asked_for = ApproveRequest("al", "t", found[0].call_id)
                        await agents.turns.approve(asked_for)
                        break
                    await anyio.sleep(0.01)
                await anyio.sleep(1)
                async with standing_records(bus, durable_claims(bus), "al", "t") as stored:
                    records = [one async for _, one in stored]
    write(name, records, forget=folder)


async def record_team(name: str) -> None:
    """Record a turn that asks another agent, and one that is nobody."""
    tasks = [{"agent": "bo", "message": "one two"}, {"agent": "cy", "message": "three"}]

    def ask(_: str, answers: Sequence[str]) -> Sequence[Step] | str:
        return answers[0] if answers else calls(call("ask", tasks=tasks))

    async with (
        local_bus() as bus,
        running_agents(bus, script=parts({"al": ask, "bo": echoes})) as agents,
    ):
        for other in ("bo", "cy"):
            await agents.create(other, instructions="bo")
        sub = SubAgent("ask", ["bo", "cy"], kind=Delegation.fan_out)
        await agents.create("al", instructions="al", sub_agents=[sub])
        await agents.system.delete("cy")
        await agents.system.execute(asked("al", "go", turn_id="t", limits=Limits(steps=50)))
        async with standing_records(bus, durable_claims(bus), "al", "t") as found:
            records = [one async for _, one in found]
    write(name, records)


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
    write(name, records)


def write(name: str, records: Sequence[JournalRecord], *, forget: str = "/none") -> None:
    """Write a journal, without the folder that this machine had for it."""
    lines = b"\n".join([*map(encode, records), encode(came_to(records))])
    (FOLDER / f"{name}.jsonl").write_bytes(lines.replace(forget.encode(), b"/notes") + b"\n")


async def _ask(agents: Agents) -> None:
    with suppress(AylluError):
        await agents.system.execute(asked("al", "one two", turn_id="t"))


if __name__ == "__main__":
    anyio.run(record_all)
