"""The AgenticSystem API: agents are kept, turns are accepted and followed. Executors take them (`executor.py`)."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import ExitStack, aclosing
from datetime import UTC, datetime
from uuid import uuid4

import msgspec

from ...bus.context import current_call
from ...schemas import (
    Agent,
    AgenticSystem,
    AgenticSystemCreateRequest,
    AgenticSystemCreateResponse,
    AgenticSystemExecuteRequest,
    AgenticSystemExecuteResponse,
    AgenticSystemExecuteResponseEventType,
    AgenticSystemExecuteResponseStreamChunk,
    AgenticSystemTurn,
    AgentTurns,
    Approval,
    ApproveRequest,
    BusError,
    Conflict,
    ExecutionStepType,
    InvalidRequest,
    NotFound,
    Turn,
    TurnEvent,
    TurnStatus,
    WhenBusy,
    encode,
)
from .deciding import decided, waiting_calls
from .entries import packed, read_records, unpacked
from .executor import Executor
from .nesting import follow_tree, read_seen
from .reader import FINAL, described, follow
from .records import AgentRecord, Cancel, Delete
from .register import Register
from .requests import check_messages, execute_of
from .streams import (
    AGENTS,
    BESIDE,
    JOURNAL,
    inbox_subject,
    journal_subject,
    lane_of,
    turn_of_journal,
)
from .timeline import Timeline
from .turn import error_of
from .validation import resolved

MAX_LISTED = 1000


class TurnStream:
    """A turn as the draft streams it; in the end ``result`` is the whole response."""

    def __init__(self, events: AsyncGenerator[TurnEvent, None]) -> None:
        self.result: bytes | None = None
        self._events = events

    def __aiter__(self) -> TurnStream:
        return self

    async def __anext__(self) -> AgenticSystemExecuteResponseStreamChunk:
        async for event in self._events:
            if event.event is not None:
                return event.event
            if event.child is not None:
                # It stands within the step that has started it, and is not counted.
                return AgenticSystemExecuteResponseStreamChunk(
                    AgenticSystemExecuteResponseEventType.step_progress,
                    event.child.step_uuid,
                    ExecutionStepType.tool_execution,
                    child=event.child,
                )
            if not event.recovered:
                raise BusError(
                    "events of this turn were lost with the bus; it goes on: follow it by "
                    "agentic_system.turn.events"
                )
            if event.turn is not None:
                self.result = encode(response_of(event.turn))
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Leave the turn, which goes on."""
        await self._events.aclose()


def response_of(turn: Turn) -> AgenticSystemExecuteResponse:
    """Return the response to the execution of a turn that has ended.

    Raises:
        AylluError: it was cancelled, or it failed; the details name the turn.
    """
    if turn.response_message is None:
        error = error_of(turn.error)
        error.details = {**error.details, "turn_id": turn.turn_id}
        raise error
    return AgenticSystemExecuteResponse(
        AgenticSystemTurn(
            user_messages=turn.user_messages,
            steps=turn.steps,
            response_message=turn.response_message,
            turn_id=turn.turn_id,
            usage=turn.usage,
            history=turn.history,
        )
    )


class AgenticSystemActor(AgenticSystem):
    """Keeps agents, and accepts their turns.

    Args:
        register: the agents.
        executor: one of this process, which takes turns that it can take without the way over the bus.
    """

    service_name = "agentic-system"

    def __init__(self, register: Register, executor: Executor | None = None) -> None:
        self._register = register
        self._executor = executor

    async def create(self, request: AgenticSystemCreateRequest) -> AgenticSystemCreateResponse:
        """Create an agent; see `AgenticSystem.create`."""
        if not request.uuid or BESIDE in request.uuid:
            raise InvalidRequest("an agent has a uuid, without the control character U+001F")
        known = Conflict(f"there is an agent {request.uuid!r} already")
        if await self._register.agents.get(request.uuid) is not None:
            raise known
        record = await resolved(self._register.bus, request, time.time())
        payload = await packed(self._register.claims, record)
        try:
            await self._register.agents.create(request.uuid, payload)
        except Conflict as error:
            raise known from error
        return AgenticSystemCreateResponse(request.uuid)

    async def execute(self, request: AgenticSystemExecuteRequest) -> AgenticSystemExecuteResponse:
        """Take a turn, and wait for its end; see `AgenticSystem.execute`."""
        async with aclosing(self._taken(request)) as events:
            async for event in events:
                if event.turn is not None and event.turn.status in FINAL:
                    return response_of(event.turn)
        raise BusError("the turn cannot be followed to its end")

    def stream_execute(self, request: AgenticSystemExecuteRequest) -> TurnStream:
        """Take a turn, and tell what happens; see `AgenticSystem.stream_execute`."""
        return TurnStream(self._taken(request))

    async def _taken(self, request: AgenticSystemExecuteRequest) -> AsyncGenerator[TurnEvent, None]:
        """Accept a turn, and follow it."""
        register, executor = self._register, self._executor
        agent, turn = request.agent_uuid, request.turn_id or uuid4().hex
        check_messages(request)
        with ExitStack() as stack:
            told = None
            if executor is not None:
                told = stack.enter_context(executor.hub.reading(agent, turn))
            here = await self._accept(request, turn)
            events = follow_tree(
                register.bus, register.claims, agent, turn, told=told if here else None
            )
            async with aclosing(events):
                async for event in events:
                    yield event

    async def _accept(self, request: AgenticSystemExecuteRequest, turn: str) -> bool:
        """Store a turn, and return whether the executor of this process takes it."""
        agent = request.agent_uuid
        record = await self._register.record(agent)
        streams = self._register.bus.storage.streams
        if request.turn_id is not None and (
            await streams.first(JOURNAL.name, journal_subject(agent, turn)) is not None
        ):
            return False  # It was accepted before, and is followed again.
        idle = request.when_busy is WhenBusy.reject
        told = inbox_subject(agent)
        if idle and not request.detached and await streams.first(AGENTS.name, told) is not None:
            raise Conflict(f"the agent {agent!r} is busy with what came into its inbox")
        context = current_call.get()
        trace = context.traceparent if context else ""
        command = execute_of(request, turn, created=record.created, traceparent=trace)
        try:
            return await self._register.ask(
                lane_of(agent, turn) if request.detached else agent,
                command,
                f"{agent}/{turn}",
                expires=request.expires_in,
                idle=idle,
                executor=self._executor,
            )
        except Conflict as error:
            raise Conflict(f"the agent {agent!r} is busy") from error

    async def delete(self, agent_id: str) -> None:
        """Remove an agent; see `AgenticSystem.delete`."""
        record = await self._register.record(agent_id)
        await self._end(agent_id, record)
        await self._register.agents.delete(agent_id)
        # What was asked for meanwhile; nothing begins any more.
        await self._end(agent_id, record)

    async def _end(self, agent: str, record: AgentRecord) -> None:
        """Ask all turns of an agent to end."""
        for lane in [agent, *await self._register.lanes_beside(agent)]:
            await self._register.ask(lane, Delete(record), f"delete {lane} {record.created}")

    async def get(self, agent_id: str) -> Agent:
        """Return an agent; see `AgenticSystem.get`."""
        return _agent(await self._register.record(agent_id))

    async def list(self) -> AsyncIterator[Agent]:
        """List all agents; see `AgenticSystem.list`."""
        for name in await self._register.agents.keys():
            try:
                yield _agent(await self._register.record(name))
            except NotFound:
                continue  # It was removed meanwhile.


def _agent(record: AgentRecord) -> Agent:
    created = datetime.fromtimestamp(record.created, UTC)
    return Agent(record.config.uuid, created, record.config)


class AgentTurnsActor(AgentTurns):
    """Tells of turns, and cancels them."""

    service_name = "agent-turns"

    def __init__(self, register: Register, executor: Executor | None = None) -> None:
        self._register = register
        self._executor = executor

    async def get(self, agent_id: str, turn_id: str) -> Turn:
        """Return a turn; see `AgentTurns.get`."""
        return await self._register.state(agent_id, turn_id)

    async def list(self, agent_id: str, limit: int = 100) -> AsyncIterator[Turn]:
        """List turns; see `AgentTurns.list`."""
        if not 1 <= limit <= MAX_LISTED:
            raise InvalidRequest(f"limit is from 1 to {MAX_LISTED}")
        await self._register.record(agent_id)
        found: dict[str, Timeline] = {}
        subject = journal_subject(agent_id, "x").replace(".x.step", ".*.step")
        streams = self._register.bus.storage.streams
        async with streams.replay(JOURNAL.name, subject) as entries:
            async for entry in entries:
                timeline = found.setdefault(turn_of_journal(entry.subject), Timeline())
                payload = await unpacked(self._register.claims, entry.payload)
                for record in read_records(payload):
                    timeline.record(record)
        for name, timeline in list(found.items())[-limit:]:
            yield msgspec.structs.replace(described(agent_id, name, timeline), steps=[])

    async def events(
        self, agent_id: str, turn_id: str, epoch: int = 0, index: int = 0, children: str = ""
    ) -> AsyncIterator[TurnEvent]:
        """Follow a turn; see `AgentTurns.events`."""
        if index < 0 or epoch < 0:
            raise InvalidRequest("a position is not negative")
        seen = read_seen(children)
        register = self._register
        state = await register.state(agent_id, turn_id)
        valid = not index or 1 <= epoch <= state.epoch
        found = follow_tree(
            register.bus,
            register.claims,
            agent_id,
            turn_id,
            epoch=epoch,
            index=index,
            valid=valid,
            seen=seen,
            childless=not state.children,
        )
        async with aclosing(found) as events:
            async for event in events:
                yield event

    async def cancel(self, agent_id: str, turn_id: str, reason: str = "") -> Turn:
        """Cancel a turn; see `AgentTurns.cancel`."""
        state, lane = await self._register.found(agent_id, turn_id)
        if state.status in FINAL:
            return state
        await self._register.ask(
            lane, Cancel(turn_id, reason), f"cancel {agent_id}/{turn_id} {uuid4().hex}"
        )
        if state.status is TurnStatus.queued:
            return state  # It ends when its time comes.
        register = self._register
        async with aclosing(follow(register.bus, register.claims, agent_id, turn_id)) as events:
            async for event in events:
                if event.turn is not None and event.turn.status in FINAL:
                    return event.turn
        raise BusError("the turn cannot be followed to its end")

    async def approve(self, request: ApproveRequest) -> Approval:
        """Decide about a call; see `AgentTurns.approve`."""
        return await decided(self._register, request, self._executor)

    async def approvals(self, agent_id: str | None = None) -> AsyncIterator[Approval]:
        """List the calls that wait; see `AgentTurns.approvals`."""
        async with aclosing(waiting_calls(self._register, agent_id)) as found:
            async for approval in found:
                yield approval
