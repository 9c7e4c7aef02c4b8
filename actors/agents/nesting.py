"""Following a turn with all that it has started: the events of turns below stand between its own, each in its order.

The events of a child come after the one that tells of its turn, and before the answer of its call. How those of several mix is
chance; so a reader that goes on says where it was in each (`Seen`), and gets what it has not seen.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import accumulate

import anyio
from anyio.abc import TaskGroup
from anyio.streams.memory import MemoryObjectSendStream

from ...bus.bus import Bus
from ...bus.claims import Claims
from ...schemas import ChildEvent, ChildTurn, InvalidRequest, TurnEvent
from ...schemas import Turn as TurnState
from ...schemas.tasks import background_tasks
from .entries import standing_records
from .hub import Told
from .reader import FINAL, follow, state_of
from .turn import Turn

AHEAD = 64
"""How many events wait to be told."""
GRACE_SECONDS = 10.0
"""How long the answer of a call waits for the events of its turns, when it is known already."""
MAX_SEEN = 16_000

Position = tuple[int, int] | None
"""Of the next event of a turn: epoch and index; None where its end was seen."""
Seen = Mapping[str, Position]
"""Where a reader is in the turns that stand below the one that it follows, by their ids."""

_SEEN = re.compile(r"([0-9a-f]{32}):(?:(-)|([0-9]{1,15})\.([0-9]{1,15}))", re.ASCII)


def read_seen(text: str) -> Seen:
    """Read what a reader says about the turns below; see `AgentTurns.events`.

    Raises:
        InvalidRequest: it is not what events have in ``children``.
    """
    seen: dict[str, Position] = {}
    for part in text[: MAX_SEEN + 1].split(",") if text else ():
        found = _SEEN.fullmatch(part)
        if found is None or len(text) > MAX_SEEN:
            raise InvalidRequest("children: it is not what an event has in `children`")
        seen[found[1]] = None if found[2] else (int(found[3]), int(found[4]))
    return seen


def write_seen(seen: Seen) -> str:
    """Return what a reader says to go on; see `read_seen`. Of some hundred turns the rest are left out, and told anew."""
    parts = [f"{turn}:-" if at is None else f"{turn}:{at[0]}.{at[1]}" for turn, at in seen.items()]
    ends = accumulate(len(part) + 1 for part in parts)
    return ",".join(part for part, end in zip(parts, ends, strict=True) if end <= MAX_SEEN)


async def follow_tree(
    bus: Bus,
    claims: Claims,
    agent: str,
    turn: str,
    *,
    epoch: int = 0,
    index: int = 0,
    valid: bool = True,
    told: AsyncIterator[Told] | None = None,
    seen: Seen | None = None,
    within: bool = False,
    childless: bool = False,
) -> AsyncGenerator[TurnEvent, None]:
    """Yield the events of a turn from a position, and those of all turns that it has started; see `follow`.

    Args:
        bus: the bus.
        claims: keeps large records.
        agent: the agent.
        turn: the turn; it need not have begun.
        epoch: that of the position; 0 where nothing was seen.
        index: the first event of the turn itself that is wanted.
        valid: see `follow`.
        told: see `follow`.
        seen: what was seen of the turns below.
        within: whether it is one of these itself: then ``seen`` may be of others, too.
        childless: whether it is known that it had started none at the position: then nobody need look.
    """
    running: dict[str, ChildTurn] = {}
    if index and not childless:
        running = await _running_at(bus, claims, agent, turn, index)
    if not running:
        # As long as there is no child, nothing stands between the events and their reader.
        own = follow(bus, claims, agent, turn, epoch=epoch, index=index, valid=valid, told=told)
        async with aclosing(own) as events:
            async for event in events:
                yield event
                epoch, index = event.epoch, event.index + (event.event is not None)
                child = event.event.child_turn if event.event is not None else None
                if child is not None:
                    running[child.turn_id] = child
                elif event.turn is not None and not event.recovered:
                    running = _unanswered(event.turn)
                if running:
                    valid = True
                    break
                if event.turn is not None and event.turn.status in FINAL:
                    return
    send, receive = anyio.create_memory_object_stream[TurnEvent](AHEAD)
    own = follow(bus, claims, agent, turn, epoch=epoch, index=index, valid=valid)
    async with background_tasks() as tasks, receive:
        known = dict(seen or {})
        position = (epoch, index)
        tree = _Tree(bus, claims, tasks, send, position=position, seen=known, within=within)
        tasks.start_soon(tree.read, own, running)
        async for event in receive:
            yield event


@dataclass(slots=True)
class _Branch:
    """A child whose events are told.

    Attributes:
        child: the turn.
        scope: ends the telling.
        done: set when all was told.
        telling: whether an event of it waits for the reader.
        told: how many were told.
        at: where the reader is in it.
        below: and in what is below it.
    """

    child: ChildTurn
    at: Position
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    done: anyio.Event = field(default_factory=anyio.Event)
    telling: bool = False
    told: int = 0
    below: Seen = field(default_factory=dict)


class _Tree:
    """Mixes the events of a turn with those of its children."""

    def __init__(
        self,
        bus: Bus,
        claims: Claims,
        tasks: TaskGroup,
        send: MemoryObjectSendStream[TurnEvent],
        *,
        position: tuple[int, int],
        seen: dict[str, Position],
        within: bool,
    ) -> None:
        self._bus = bus
        self._claims = claims
        self._tasks = tasks
        self._send = send
        self._position = position
        # Of turns whose events are not told again yet.
        self._seen = seen
        self._within = within
        self._branches: dict[str, _Branch] = {}
        # Each event says where the reader is in all turns: so they are told in the order in which that was noted.
        self._sending = anyio.Lock()

    async def read(
        self, events: AsyncGenerator[TurnEvent, None], running: Mapping[str, ChildTurn]
    ) -> None:
        """Tell all events, to the end of the turn."""
        for child in running.values():
            self._branch_off(child)
        async with self._send, aclosing(events) as own:
            async for event in own:
                chunk = event.event
                closed: list[str] = []
                if chunk is not None and chunk.call is not None:
                    closed = await self._close(chunk.step_uuid, chunk.call)
                elif event.turn is not None and event.turn.status in FINAL:
                    closed = await self._close()
                async with self._sending:
                    await self._send.send(event)
                    self._position = (event.epoch, event.index + (chunk is not None))
                for name in closed:
                    del self._branches[
                        name
                    ]  # Not before: who goes on from before the event must know of them.
                if chunk is not None and chunk.child_turn is not None:
                    self._branch_off(chunk.child_turn)
                elif event.turn is not None and not event.recovered:
                    for child in _unanswered(event.turn).values():
                        self._branch_off(child)

    def _branch_off(self, child: ChildTurn) -> None:
        if child.turn_id in self._branches:
            return
        at = self._seen.pop(child.turn_id, (0, 0))
        branch = self._branches[child.turn_id] = _Branch(child, at)
        if at is None:
            branch.done.set()  # Its end was seen.
        else:
            self._tasks.start_soon(self._tell, branch, at)

    async def _tell(self, branch: _Branch, at: tuple[int, int]) -> None:
        child = branch.child
        with branch.scope:
            events = follow_tree(
                self._bus,
                self._claims,
                child.agent_uuid,
                child.turn_id,
                epoch=at[0],
                index=at[1],
                seen=self._seen,
                within=True,
            )
            async with aclosing(events) as found:
                async for event in found:
                    branch.telling = True
                    async with self._sending:
                        await self._send.send(self._nested(branch, event))
                    branch.telling, branch.told = False, branch.told + 1
        branch.done.set()

    def _nested(self, branch: _Branch, event: TurnEvent) -> TurnEvent:
        child, inner = branch.child, event.child
        if inner is not None:
            branch.below = read_seen(inner.children)
            for turn in branch.below:
                self._seen.pop(turn, None)
            stripped = ChildEvent(inner.agent_uuid, inner.turn_id, inner.step_uuid, inner.event)
            event = TurnEvent(event.epoch, event.index, child=stripped)
        branch.at = (event.epoch, event.index + (event.event is not None))
        if event.turn is not None and event.turn.status in FINAL:
            branch.at, branch.below = None, {}
        seen: dict[str, Position] = {}
        for one in self._branches.values():
            seen |= {one.child.turn_id: one.at, **one.below}
        if not self._within:
            seen |= self._seen
        nested = ChildEvent(
            child.agent_uuid, child.turn_id, child.step_uuid, event, write_seen(seen)
        )
        return TurnEvent(*self._position, child=nested)

    async def _close(self, step: str | None = None, call: int | None = None) -> list[str]:
        """Wait until all was told of the turns of a call, or of all, and return them; what is lost is not waited for."""
        closed = []
        for name, branch in list(self._branches.items()):
            child = branch.child
            if step is not None and (child.step_uuid, child.call) != (step, call):
                continue
            with anyio.move_on_after(GRACE_SECONDS):
                if await state_of(self._bus, self._claims, child.agent_uuid, child.turn_id) is None:
                    branch.scope.cancel()
            await _wait_for(branch)
            branch.scope.cancel()
            closed.append(name)
        return closed


async def _wait_for(branch: _Branch) -> None:
    """Wait until all was told of a turn, however slow its reader is, or nothing came of it for too long."""
    told = -1
    while not branch.done.is_set() and (branch.telling or branch.told > told):
        told = branch.told
        with anyio.move_on_after(GRACE_SECONDS):
            await branch.done.wait()


def _unanswered(turn: TurnState) -> dict[str, ChildTurn]:
    """Return the turns that were started in a step that has not ended."""
    ended = {step.uuid for step in turn.steps}
    return {child.turn_id: child for child in turn.children if child.step_uuid not in ended}


async def _running_at(
    bus: Bus, claims: Claims, agent: str, turn: str, index: int
) -> dict[str, ChildTurn]:
    """Return the turns that a turn had started when its event of an index came, and whose calls had no answer yet."""
    found: dict[str, ChildTurn] = {}
    known = Turn()
    async with standing_records(bus, claims, agent, turn) as records:
        async for _, record in records:
            for event in known.apply(record):
                chunk = event.chunk
                if event.index >= index:
                    return found
                if chunk.child_turn is not None:
                    found[chunk.child_turn.turn_id] = chunk.child_turn
                elif chunk.call is not None:
                    call = (chunk.step_uuid, chunk.call)
                    found = {
                        name: child
                        for name, child in found.items()
                        if (child.step_uuid, child.call) != call
                    }
    return found
