"""Traces of turns, read from their journals: a turn, those that it has started, and theirs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import anyio

from ...bus.subjects import decode_token
from ...schemas import (
    ChildTurn,
    Conflict,
    InvalidRequest,
    NotFound,
    TurnStatus,
    TurnTrace,
    TurnTraces,
)
from ...schemas.delegation import MAX_DEPTH
from ...schemas.tracing import MAX_TRACED
from .entries import standing_records
from .register import Register
from .streams import JOURNAL, journal_subject
from .trace import Traced, Tracing, joined

log = logging.getLogger(__name__)

AT_ONCE = 8
"""How many journals are read at the same time for one trace."""
ANY = "any"


Names = tuple[str, str]
"""An agent and a turn of it."""


@dataclass(slots=True)
class _Read:
    """A turn whose journal is read.

    Attributes:
        names: whose it is, and its id.
        asked: when another turn has started it.
        traced: what its journal tells; None where it has none.
        below: the turns that it has started, as far as they are read.
    """

    names: Names
    asked: float | None = None
    traced: Traced | None = None
    below: dict[Names, _Read] = field(default_factory=dict)

    def told(self) -> TurnTrace:
        """Return its trace."""
        if self.traced is None:
            return TurnTrace(*self.names, TurnStatus.queued)
        return joined(self.traced, partial(self._of_child, self.traced.ended))

    def _of_child(self, ended: bool, child: ChildTurn) -> TurnTrace | None:
        found = self.below.get((child.agent_uuid, child.turn_id))
        # What has no journal may yet begin, as long as somebody waits for it; else that is too old, or cannot be read.
        if found is None or (found.traced is None and ended):
            return None
        return found.told()


class TurnTracesActor(TurnTraces):
    """Tells when what happened in turns."""

    service_name = "turn-traces"

    def __init__(self, register: Register) -> None:
        self._register = register

    async def trace(self, turn_id: str, agent_id: str | None = None) -> TurnTrace:
        """Return the trace of a turn; see `TurnTraces.trace`."""
        agent = await self._agent_of(turn_id) if agent_id is None else agent_id
        root = _Read((agent, turn_id))
        await self._read(root)
        if root.traced is None:
            state = await self._register.state(agent, turn_id)
            return TurnTrace(agent, turn_id, state.status)
        await self._read_below(root)
        return root.told()

    async def _agent_of(self, turn: str) -> str:
        """Return whose a turn is.

        Raises:
            NotFound: nobody's, or it has not begun.
            Conflict: several agents have one of this id.
        """
        subject = journal_subject(ANY, turn).replace(f".{ANY}.", ".*.", 1)
        found: set[str] = set()
        async with self._register.bus.storage.streams.replay(JOURNAL.name, subject) as entries:
            async for entry in entries:
                with suppress(ValueError):  # Nobody's: somebody else wrote it.
                    found.add(decode_token(entry.subject.split(".")[3]))
        if not found:
            raise NotFound(
                f"no turn {turn!r} has begun; one that waits is found where its agent is named"
            )
        if len(found) > 1:
            names = ", ".join(map(repr, sorted(found)[:3]))
            raise Conflict(f"several agents have a turn {turn!r}, such as {names}: say which")
        return found.pop()

    async def _read(self, one: _Read) -> None:
        """Read the journal of a turn.

        Raises:
            AylluError: it cannot be read.
        """
        register, tracing, begun = self._register, Tracing(*one.names), False
        async with standing_records(register.bus, register.claims, *one.names) as records:
            async for _, record in records:
                tracing.take(record)
                begun = True
        if begun:
            one.traced = tracing.told(one.asked)

    async def _read_below(self, root: _Read) -> None:
        """Read the turns that a turn has started, and theirs: the nearest first, as many as a trace may have."""
        known = {root.names}
        level = [root]
        for _ in range(MAX_DEPTH):
            below: list[_Read] = []
            for one in level:
                for child, asked in one.traced.children if one.traced is not None else ():
                    names = child.agent_uuid, child.turn_id
                    if names not in known and len(known) < MAX_TRACED:
                        known.add(names)
                        one.below[names] = _Read(names, asked)
                        below.append(one.below[names])
            level = below
            await self._read_all(level)

    async def _read_all(self, level: Sequence[_Read]) -> None:
        limiter = anyio.CapacityLimiter(AT_ONCE)

        async def read(one: _Read) -> None:
            async with limiter:
                try:
                    await self._read(one)
                except (InvalidRequest, NotFound) as error:
                    # The oldest of what is kept may be gone in part; the rest of the trace is told.
                    log.warning("a turn is left out of a trace: %s", error)

        async with anyio.create_task_group() as tasks:
            for one in level:
                tasks.start_soon(read, one)
