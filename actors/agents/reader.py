"""Following a turn: what was, then what comes, from the journal and the deltas, to its end."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime

import anyio
from anyio.streams.memory import MemoryObjectSendStream

from ...bus.bus import Bus
from ...bus.claims import Claims
from ...schemas import Limits, NotFound, Turn, TurnEvent, TurnStatus
from ...schemas.tasks import background_tasks
from .entries import read_delta, read_records, standing_deltas, standing_records, unpacked
from .hub import Told
from .records import Delta
from .streams import DELTAS, JOURNAL, delta_subject, journal_subject
from .timeline import Timeline

log = logging.getLogger(__name__)

FINAL = frozenset((TurnStatus.completed, TurnStatus.cancelled, TurnStatus.failed))
AHEAD = 256
"""How many records and deltas wait to be looked at."""


@asynccontextmanager
async def _merged(
    bus: Bus, claims: Claims, agent: str, turn: str
) -> AsyncIterator[AsyncIterator[Told]]:
    """Read the journal and the deltas of a turn, as they come."""
    send, receive = anyio.create_memory_object_stream[Told](AHEAD)
    streams = bus.storage.streams

    async def read_journal(to: MemoryObjectSendStream[Told]) -> None:
        async with streams.read(JOURNAL.name, journal_subject(agent, turn)) as entries:
            async for entry in entries:
                for record in read_records(await unpacked(claims, entry.payload)):
                    await to.send(record)

    async def read_deltas(to: MemoryObjectSendStream[Told]) -> None:
        while True:
            try:
                async with streams.read(DELTAS.name, delta_subject(agent, turn)) as entries:
                    async for entry in entries:
                        delta = read_delta(entry)
                        if delta is not None:
                            await to.send(delta)
            except NotFound:
                # The stream was made anew after the broker's restart: its deltas are gone, new ones come.
                log.debug("the deltas of a turn are read anew")
                await streams.ensure(DELTAS)

    async with background_tasks() as tasks, send, receive:
        tasks.start_soon(read_journal, send)
        tasks.start_soon(read_deltas, send)
        yield receive


async def follow(
    bus: Bus,
    claims: Claims,
    agent: str,
    turn: str,
    *,
    epoch: int = 0,
    index: int = 0,
    valid: bool = True,
    told: AsyncIterator[Told] | None = None,
) -> AsyncGenerator[TurnEvent, None]:
    """Yield the events of a turn from a position; the last one has the whole turn.

    Args:
        bus: the bus.
        claims: keeps large records.
        agent: the agent.
        turn: the turn; it need not have begun.
        epoch: that of the position; 0 where nothing was seen.
        index: the first event that is wanted.
        valid: whether the turn has had such a position; else its reader begins anew from the turn's state.
        told: what an executor of this process tells, from the turn's beginning on; the streams are read where that ends.
    """
    if told is not None:
        async with aclosing(_events(told, agent, turn, Timeline(index, epoch), valid)) as events:
            async for event in events:
                yield event
                if event.turn is not None and event.turn.status in FINAL:
                    return
                epoch, index = event.epoch, event.index + (event.event is not None)
    async with (
        _merged(bus, claims, agent, turn) as entries,
        aclosing(_events(entries, agent, turn, Timeline(index, epoch), valid)) as events,
    ):
        async for event in events:
            yield event


async def _events(
    entries: AsyncIterator[Told], agent: str, turn: str, timeline: Timeline, valid: bool
) -> AsyncGenerator[TurnEvent, None]:
    async for entry in entries:
        events = timeline.delta(entry) if isinstance(entry, Delta) else timeline.record(entry)
        known = timeline.turn
        if timeline.lost or (not valid and known.began is not None):
            valid = True
            timeline.lost, timeline.next = False, known.index
            state = described(agent, turn, timeline)
            yield TurnEvent(known.epoch, known.index, turn=state, recovered=False)
            events = timeline.told()
        for event in events:
            yield TurnEvent(known.epoch, event.index, event.chunk)
        if known.ended is not None:
            yield TurnEvent(known.epoch, known.index, turn=described(agent, turn, timeline))
            return


async def state_of(bus: Bus, claims: Claims, agent: str, turn: str) -> Timeline | None:
    """Return a turn as far as it has come; None where it has not begun."""
    if await bus.storage.streams.first(JOURNAL.name, journal_subject(agent, turn)) is None:
        return None
    timeline = Timeline()
    async with standing_records(bus, claims, agent, turn) as records:
        async for _, record in records:
            timeline.record(record)
    if timeline.turn.ended is None:
        async with standing_deltas(bus, agent, turn) as deltas:
            async for _, delta in deltas:
                timeline.delta(delta)
    return timeline


def described(agent: str, name: str, timeline: Timeline) -> Turn:
    """Return a turn as clients see it."""
    turn = timeline.turn
    began, ended = turn.began, turn.ended
    return Turn(
        agent_uuid=agent,
        turn_id=name,
        status=turn.status,
        epoch=turn.epoch,
        index=max(turn.index, timeline.next),
        user_messages=began.messages if began else [],
        steps=turn.steps,
        partial_text=timeline.partial_text,
        response_message=ended.response if ended else None,
        error=ended.error if ended else None,
        usage=turn.usage if began else None,
        history=turn.told_use if began else None,
        begun_at=datetime.fromtimestamp(began.at, UTC) if began else None,
        ended_at=datetime.fromtimestamp(ended.at, UTC) if ended else None,
        approvals=turn.waiting,
        parent=turn.parent,
        cause=began.cause if began else None,
        limits=began.limits if began else Limits(),
        spent=turn.spent,
        children=turn.children,
    )
