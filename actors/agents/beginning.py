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
    decode,
    stricter,
)
from .desk import Desk
from .entries import unpacked
from .history import chosen_history, retrieves
from .records import (
    AGENTS,
    AgentRecord,
    Began,
    Command,
    Delete,
    Execute,
    HistoryTurn,
    history_subject,
)


async def beginning(
    desk: Desk, command: Execute, later: Sequence[Command], turn: str
) -> tuple[Began, AylluError | None]:
    """Return the first record of a turn, and why the turn must end at once, if it must.

    Args:
        desk: the executor's, for the agent.
        command: the turn.
        later: what the agent was asked for after it.
        turn: the turn's id.

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
    turns = await _history(desk, command)
    use = HistoryUse(policy=agent.config.history_policy)
    try:
        use = chosen_history(agent, turns, command.messages)
    except ContextLengthExceeded as exceeded:
        error = error or exceeded
    step = ExecutionStepType.model_inference
    if agent.config.input_shields:
        step = ExecutionStepType.safety_filtering
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
        limits=stricter(agent.config.limits, command.limits),
        cause=command.cause,
    )
    return began, error


async def _agent(desk: Desk, command: Execute, later: Sequence[Command]) -> AgentRecord | None:
    for one in later:
        if isinstance(one, Delete):
            return one.agent
    return await desk.agent_record(command.created)


async def _history(desk: Desk, command: Execute) -> list[list[Message]]:
    """Return the earlier turns, oldest first, as the model sees them."""
    given = command.turn_history
    if command.history is not None:
        return command.history
    if given is not None:
        return [[*turn.user_messages, turn.response_message] for turn in given]
    subject = history_subject(desk.agent)
    streams = desk.office.bus.storage.streams
    if await streams.first(AGENTS.name, subject) is None:
        return []
    turns = []
    async with streams.replay(AGENTS.name, subject) as entries:
        async for entry in entries:
            payload = await unpacked(desk.office.claims, entry.payload)
            turns.append(decode(payload, HistoryTurn).messages)
    return turns
