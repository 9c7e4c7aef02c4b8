"""The turns that have not ended, for ``ayllu top``: followed from look to look, so that each asks for what is new only."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import anyio

from ..actors.agents.entries import durable_claims, read_records, turn_of, unpacked
from ..actors.agents.inbox import read_entry
from ..actors.agents.records import Execute
from ..actors.agents.step import OpenStep
from ..actors.agents.streams import (
    AGENTS,
    BESIDE,
    COMMANDS,
    INBOXES,
    JOURNAL,
    agent_of,
    command_subject,
    inbox_subject,
    journal_subject,
    lane_of_command,
)
from ..actors.agents.timeline import Timeline
from ..bus.bus import Bus
from ..bus.durable import Entry
from ..schemas import BusError, InvalidRequest, NotFound
from .top import TurnFacts
from .top_streams import JetStreamFacts
from .turn_view import TITLES

MOST_TURNS = 40
"""How many turns are looked at."""
MOST_RECORDS = 256
"""How many entries of a journal are read in one look; the next one goes on."""
MOST_SUBJECTS = 50_000
"""Where agents have something to do on more subjects, no list of them is asked for: it is megabytes."""
AT_ONCE = 8

Clock = Callable[[], float]


@dataclass(slots=True)
class _Followed:
    """A turn that is followed: its journal, and how far it is read."""

    timeline: Timeline = field(default_factory=Timeline)
    after: int = 0


class TurnWatch:
    """Looks at turns that have not ended.

    Args:
        bus: the bus.
        facts: tells where something is to be done.
        clock: the time in seconds since the epoch.
    """

    def __init__(self, bus: Bus, facts: JetStreamFacts, clock: Clock = time.time) -> None:
        self._bus = bus
        self._claims = durable_claims(bus)
        self._facts = facts
        self._clock = clock
        self._followed: dict[tuple[str, str], _Followed] = {}

    async def look(self, subjects: int) -> tuple[list[TurnFacts], int]:
        """Return the turns, those of the busiest lanes, and how many lanes were left out.

        Args:
            subjects: on how many subjects the stream of commands has entries.

        Raises:
            BusError: the bus does not tell.
        """
        if subjects > MOST_SUBJECTS:
            return [], subjects
        lanes = await self._lanes()
        chosen = sorted(lanes, key=lambda lane: (-lanes[lane], lane))[:MOST_TURNS]
        found: dict[str, TurnFacts] = {}
        limiter = anyio.CapacityLimiter(AT_ONCE)
        followed: dict[tuple[str, str], _Followed] = {}

        async def look_at(lane: str) -> None:
            async with limiter:
                turn = await self._turn(lane, followed)
            if turn is not None:
                found[lane] = self._facts_of(turn, lanes[lane] - 1, followed[turn])

        async with anyio.create_task_group() as tasks:
            for lane in chosen:
                tasks.start_soon(look_at, lane)
        self._followed = followed
        return [found[lane] for lane in chosen if lane in found], len(lanes) - len(chosen)

    async def _lanes(self) -> Mapping[str, int]:
        """Return how much is to be done in each lane."""
        lanes: dict[str, int] = {}
        for pattern in (COMMANDS, INBOXES):
            for subject, count in (await self._facts.subjects(AGENTS.name, pattern)).items():
                try:
                    lane = lane_of_command(subject)
                except ValueError:
                    continue  # Nobody's.
                lanes[lane] = lanes.get(lane, 0) + count
        return lanes

    async def _turn(
        self, lane: str, followed: dict[tuple[str, str], _Followed]
    ) -> tuple[str, str] | None:
        """Return the turn that is taken in a lane, and read on in its journal."""
        try:
            entry = await self._first(lane)
            command = None if entry is None else await read_entry(self._claims, entry)
            if entry is None or not isinstance(command, Execute):
                return None
            names = agent_of(lane), turn_of(entry, command)
            followed[names] = self._followed.get(names, _Followed())
            await self._read_on(names, followed[names])
        except (InvalidRequest, NotFound):
            return None  # It becomes a dead letter, or is just gone.
        except BusError as error:
            if error.retryable:
                raise
            return None
        return names

    async def _first(self, lane: str) -> Entry | None:
        streams = self._bus.storage.streams
        command = await streams.first(AGENTS.name, command_subject(lane))
        if BESIDE in lane:
            return command
        told = await streams.first(AGENTS.name, inbox_subject(lane))
        found = [entry for entry in (command, told) if entry is not None]
        return min(found, key=lambda entry: entry.sequence, default=None)

    async def _read_on(self, names: tuple[str, str], known: _Followed) -> None:
        streams, subject = self._bus.storage.streams, journal_subject(*names)
        for _ in range(MOST_RECORDS):
            entry = await streams.first(JOURNAL.name, subject, after=known.after)
            if entry is None:
                return
            for record in read_records(await unpacked(self._claims, entry.payload)):
                known.timeline.record(record)
            known.after = entry.sequence

    def _facts_of(self, names: tuple[str, str], behind: int, known: _Followed) -> TurnFacts:
        state = known.timeline.turn
        began = state.began
        usage = state.usage
        return TurnFacts(
            *names,
            str(state.status),
            _doing(state.step),
            None if began is None else max(0.0, self._clock() - began.at),
            usage.prompt_tokens + usage.completion_tokens,
            behind,
        )


def _doing(step: OpenStep | None) -> str:
    """Return what a step does: for tools, which of them are not done."""
    if step is None:
        return ""
    names = [step.calls.wanted[place].tool_name for place in step.calls.left]
    return f"{TITLES[step.kind]}: {', '.join(names[:3])}" if names else TITLES[step.kind]
