"""Deciding about calls that wait: what people say goes to the executor as a command, and holds once that has written it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from uuid import uuid4

from ...bus.durable import Entry
from ...schemas import (
    Approval,
    ApprovalDecision,
    ApproveRequest,
    Conflict,
    InvalidRequest,
    NotFound,
)
from ..tools.checking import problem_with
from .entries import turn_of
from .executor import Executor
from .inbox import read_entry
from .reader import FINAL, follow, state_of
from .records import Decide, Execute
from .register import Register
from .streams import AGENTS, COMMANDS, agent_of, inbox_subject, lane_of_command
from .turn import Turn


async def decided(
    register: Register, request: ApproveRequest, executor: Executor | None
) -> Approval:
    """Decide about a call, and return it when the decision holds.

    Cancelling it does not take the decision back.

    Raises:
        NotFound: there is no such turn, or it has no such call.
        Conflict: it was decided otherwise, or the turn has ended.
        InvalidRequest: the arguments are not what the tool takes, or are of a call that is denied.
    """
    agent, name = request.agent_id, request.turn_id
    state, lane = await register.found(agent, name)
    timeline = await state_of(register.bus, register.claims, agent, name)
    known = timeline.turn.approvals.get(request.call_id) if timeline is not None else None
    if timeline is None or known is None:
        raise NotFound(f"no call {request.call_id!r} of this turn waits for a decision")
    if known.decision is not None:
        return _same(known, request)
    if state.status in FINAL:
        raise Conflict("the turn has ended")
    _check_arguments(timeline.turn, known, request)
    command = Decide(name, request.call_id, request.decision, request.reason, request.arguments)
    await register.ask(lane, command, f"decide {agent}/{name} {uuid4().hex}", executor=executor)
    events = follow(
        register.bus, register.claims, agent, name, epoch=state.epoch, index=state.index
    )
    async with aclosing(events) as told:
        async for event in told:
            if not event.recovered and event.turn is not None:
                waiting = [one.call_id for one in event.turn.approvals]
                if request.call_id not in waiting:
                    break
            approval = event.event.approval if event.event is not None else None
            if approval is None or approval.call_id != request.call_id:
                continue
            if approval.decision is not None:
                return _same(approval, request)
    # Its event may have been among those that were lost with the bus.
    timeline = await state_of(register.bus, register.claims, agent, name)
    held = timeline.turn.approvals.get(request.call_id) if timeline is not None else None
    if held is not None and held.decision is not None:
        return _same(held, request)
    raise Conflict("the turn has ended")


def _same(known: Approval, request: ApproveRequest) -> Approval:
    """Return what was decided, if it is what is asked for.

    Raises:
        Conflict: it is not.
    """
    wanted = known.tool_call.arguments if request.arguments is None else request.arguments
    changed = request.arguments is not None
    alike = known.decision is ApprovalDecision.deny or (
        known.changed == changed and known.tool_call.arguments == wanted
    )
    if known.decision is not request.decision or not alike:
        how = " with other arguments" if known.changed else ""
        word = "denied" if known.decision is ApprovalDecision.deny else f"approved{how}"
        raise Conflict(f"the call was {word} already")
    return known


def _check_arguments(turn: Turn, known: Approval, request: ApproveRequest) -> None:
    if request.arguments is None:
        return
    if request.decision is ApprovalDecision.deny:
        raise InvalidRequest("arguments: a call that is denied has none")
    tool = turn.tool(known.tool_call.tool_name)
    problem = problem_with(tool.schema, request.arguments) if tool is not None else None
    if problem is not None:
        raise InvalidRequest(f"arguments: {problem}")


async def waiting_calls(register: Register, agent: str | None) -> AsyncGenerator[Approval, None]:
    """Yield the calls that wait for a decision, of one agent or of all.

    Raises:
        NotFound: there is no such agent.
    """
    if agent is not None:
        await register.record(agent)
    streams = register.bus.storage.streams
    first: dict[str, Entry] = {}
    async with streams.replay(AGENTS.name, COMMANDS) as entries:
        async for entry in entries:
            first.setdefault(lane_of_command(entry.subject), entry)
    for name in await register.agents.keys() if agent is None else [agent]:
        told = await streams.first(AGENTS.name, inbox_subject(name))
        if told is not None and (name not in first or told.sequence < first[name].sequence):
            first[name] = told
    for lane, entry in sorted(first.items()):
        if agent is None or agent_of(lane) == agent:
            for approval in await _waiting(register, agent_of(lane), entry):
                yield approval


async def _waiting(register: Register, agent: str, entry: Entry) -> list[Approval]:
    """Return the calls that wait in the turn that is taken in a lane: that of the first command that stands there."""
    try:
        command = await read_entry(register.claims, entry)
        if not isinstance(command, Execute):
            return []
        timeline = await state_of(register.bus, register.claims, agent, turn_of(entry, command))
    except (InvalidRequest, NotFound):
        return []  # It becomes a dead letter, or is just gone.
    return timeline.turn.waiting if timeline is not None else []
