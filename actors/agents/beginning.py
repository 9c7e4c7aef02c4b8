"""How a turn begins: what its first record says of the agent, the history, and the first step."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ...schemas import (
    AgenticSystemCreateRequest,
    AylluError,
    Cancelled,
    ContextLengthExceeded,
    ExecutionStepType,
    HistoryUse,
    Message,
    Spent,
    ToolCall,
    decode,
    stricter,
)
from .budget import exceeded
from .delegation import hands_off, sub_agent
from .desk import Desk
from .entries import read_records, unpacked
from .history import chosen_history, retrieves
from .records import AgentRecord, Began, Command, Delete, Ended, Execute, HistoryTurn
from .streams import AGENTS, JOURNAL, history_subject, journal_subject


async def beginning(
    desk: Desk, command: Execute, later: Sequence[Command], *, turn: str, entry: int
) -> tuple[Began, AylluError | None]:
    """Return the first record of a turn, and why the turn must end at once, if it must.

    Args:
        desk: the executor's, for the agent.
        command: the turn.
        later: what the agent was asked for after it.
        turn: the turn's id.
        entry: where its command stands.

    Returns:
        The record, and the error.
    """
    agent = await _agent(desk, command, later)
    error: AylluError | None = None
    if agent is None:
        # It was deleted after the turn was accepted, and all that was known of it is gone.
        error = Cancelled("the agent was deleted")
        config = AgenticSystemCreateRequest(uuid=desk.agent, instructions="", model="-")
        agent = AgentRecord(config, [], 0, command.created)
    turns, holder = await _history(desk, command)
    use = HistoryUse(policy=agent.config.history_policy)
    try:
        use = chosen_history(agent, turns, command.messages)
    except ContextLengthExceeded as too_long:
        error = error or too_long
    calls = [ToolCall(holder, {})] if hands_off(sub_agent(agent.config, holder)) else []
    limits = stricter(agent.config.limits, command.limits)
    error = error or exceeded(limits, Spent()) or await _orphaned(desk, command)
    step = ExecutionStepType.model_inference
    if agent.config.input_shields:
        step = ExecutionStepType.safety_filtering
    elif calls:
        step = ExecutionStepType.tool_execution
    elif retrieves(agent.config, command.messages):
        step = ExecutionStepType.memory_retrieval
    began = Began(
        at=time.time(),
        agent=agent,
        turn=turn,
        messages=command.messages,
        history=turns[-use.turns :] if use.turns else [],
        use=use,
        step=step,
        executor=desk.office.name,
        deltas=await desk.office.deltas_made(),
        traceparent=command.traceparent,
        detached=command.detached,
        limits=limits,
        cause=command.cause,
        origin=command.origin,
        # After shields, where there are some.
        calls=calls,
        entry=entry,
    )
    return began, error


async def _orphaned(desk: Desk, command: Execute) -> AylluError | None:
    """Return that the turn which has started this one has ended, if so: it was started by an executor that had lost it."""
    if command.origin is None:
        return None
    parent = command.origin.lineage[-1]
    streams = desk.office.bus.storage.streams
    last = await streams.last(JOURNAL.name, journal_subject(parent.agent_uuid, parent.turn_id))
    if last is None:
        return None
    records = read_records(await unpacked(desk.office.claims, last.payload))
    ended = any(isinstance(record, Ended) for record in records)
    return Cancelled("the turn that started this one has ended") if ended else None


async def _agent(desk: Desk, command: Execute, later: Sequence[Command]) -> AgentRecord | None:
    for one in later:
        if isinstance(one, Delete):
            return one.agent
    return await desk.agent_record(command.created)


async def _history(desk: Desk, command: Execute) -> tuple[list[list[Message]], str]:
    """Return the earlier turns, oldest first, as the model sees them, and by which tool the conversation was handed over."""
    given = command.turn_history
    if command.history is not None:
        return command.history, ""
    if given is not None:
        return [[*turn.user_messages, turn.response_message] for turn in given], ""
    subject = history_subject(desk.agent)
    streams = desk.office.bus.storage.streams
    if await streams.first(AGENTS.name, subject) is None:
        return [], ""
    turns, holder = [], ""
    async with streams.replay(AGENTS.name, subject) as entries:
        async for entry in entries:
            payload = await unpacked(desk.office.claims, entry.payload)
            left = decode(payload, HistoryTurn)
            turns.append(left.messages)
            holder = left.holder
    return turns, holder
