"""Agents over the websocket: ``stack.agent("id").turn(...)``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from uuid import uuid4

from ..schemas import (
    AgenticSystemExecuteRequest,
    AgenticSystemTurn,
    Limits,
    Message,
    Role,
    WhenBusy,
)
from .turns import PATIENCE, Caller, FollowedTurn

NO_LIMITS = Limits()


class AgentClient:
    """An agent of a deployment. Use it through `Stack.agent`."""

    def __init__(self, caller: Caller, agent_id: str) -> None:
        self.agent_id = agent_id
        self._caller = caller

    @asynccontextmanager
    async def turn(
        self,
        messages: str | Sequence[Message],
        *,
        turn_id: str | None = None,
        turn_history: Sequence[AgenticSystemTurn] | None = None,
        when_busy: WhenBusy = WhenBusy.queue,
        expires_in: float | None = None,
        limits: Limits = NO_LIMITS,
        patience: float = PATIENCE,
    ) -> AsyncIterator[FollowedTurn]:
        """Let the agent take a turn, and follow it to its end.

        The turn begins when its first event is asked for. Leaving the block does not end it: it can be followed again
        with `follow`, and ended with `FollowedTurn.cancel`.

        Args:
            messages: what the user says, or the answers of the client's own tools.
            turn_id: the turn's id, by default a new one; under the id of a turn that exists, that one is followed.
            turn_history: replaces the history that the server holds, for this turn.
            when_busy: what becomes of it while another turn of the agent runs.
            expires_in: seconds after which it is not begun any more.
            limits: what it may take, together with all turns that it starts.
            patience: for how many seconds a connection or server that is away is tried again.
        """
        if isinstance(messages, str):
            messages = [Message(role=Role.user, content=messages)]
        request = AgenticSystemExecuteRequest(
            agent_uuid=self.agent_id,
            messages=list(messages),
            turn_history=None if turn_history is None else list(turn_history),
            turn_id=turn_id or str(uuid4()),
            when_busy=when_busy,
            expires_in=expires_in,
            limits=limits,
        )
        turn = FollowedTurn(self._caller, self.agent_id, str(request.turn_id), request, patience)
        async with aclosing(turn):
            yield turn

    @asynccontextmanager
    async def follow(
        self,
        turn_id: str,
        *,
        epoch: int = 0,
        index: int = 0,
        children: str = "",
        patience: float = PATIENCE,
    ) -> AsyncIterator[FollowedTurn]:
        """Follow a turn that exists, from the beginning or from a position (see `FollowedTurn`) on.

        Args:
            turn_id: the turn.
            epoch: that of the position; 0 where nothing was seen.
            index: the first event that is wanted.
            children: what was seen of the turns that it has started.
            patience: for how many seconds a connection or server that is away is tried again.
        """
        turn = FollowedTurn(self._caller, self.agent_id, turn_id, None, patience)
        turn.epoch, turn.index, turn.children = epoch, index, children
        async with aclosing(turn):
            yield turn
