"""Turns of agents that run for a group: begun, followed to their end, cancelled."""

from __future__ import annotations

import logging
import random

import anyio

from ...bus.bus import Bus
from ...bus.client import client
from ...schemas import (
    AgenticSystem,
    AgenticSystemExecuteRequest,
    AgentTurns,
    AylluError,
    ErrorInfo,
    NotFound,
    Spent,
    Turn,
    TurnStatus,
)
from ..patience import FIRST_PAUSE, LONGEST_PAUSE
from .conversation import Ask, Conversation
from .hearing import Outcome, text_of
from .prompting import dialog_of

log = logging.getLogger(__name__)

FOLLOW_SECONDS = 600.0
"""The deadline of each call that waits for a turn; one that takes longer is waited for again."""
LOOK_SECONDS = 30.0
PAUSES = (0.25, 0.0)
"""Before a turn that was not begun is looked for again, and after the last look."""
FINAL = frozenset((TurnStatus.completed, TurnStatus.cancelled, TurnStatus.failed))
GONE = ErrorInfo("not_found", "the turn was not begun")


class GroupTurns:
    """Lets agents take turns for groups. Each has an id that only one ask has: to begin it again is to follow it."""

    def __init__(self, bus: Bus) -> None:
        self._system = client(AgenticSystem, bus, timeout=FOLLOW_SECONDS)
        self._turns = client(AgentTurns, bus, timeout=LOOK_SECONDS)

    async def outcome(self, conversation: Conversation, ask: Ask) -> Outcome:
        """Begin a turn, or find it again, and return what it came to. To cancel this does not cancel the turn."""
        history, messages = dialog_of(conversation, ask)
        request = AgenticSystemExecuteRequest(
            agent_uuid=ask.agent,
            messages=messages,
            turn_history=history,
            turn_id=ask.turn,
            limits=ask.limits,
            detached=True,
        )
        pause = FIRST_PAUSE
        while True:
            error: ErrorInfo | None = None
            try:
                await self._system.execute(request)
            except AylluError as raised:
                error = raised.info
            found = await self._ended(ask, error)
            if found is not None:
                return found
            log.info("the turn %s is waited for: %s", ask.turn, error)
            await anyio.sleep(pause * random.uniform(1.0, 1.25))  # noqa: S311
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _ended(self, ask: Ask, error: ErrorInfo | None) -> Outcome | None:
        """Return what a turn came to that has ended, or cannot begin."""
        try:
            turn = await self._turns.get(ask.agent, ask.turn)
        except NotFound:
            refused = error is not None and not error.retryable
            return Outcome(Spent(), error=error) if refused else None
        except AylluError:
            return None
        return outcome_of(turn) if turn.status in FINAL else None

    async def cancel(self, ask: Ask) -> Outcome:
        """Cancel a turn that counts no more, and return what it came to; one that had not begun took nothing.

        Raises:
            AylluError: no answer.
        """
        for pause in PAUSES:
            try:
                turn = await self._turns.cancel(ask.agent, ask.turn, "it counts no more")
            except NotFound:
                # A request to begin it may be on its way.
                await anyio.sleep(pause)
            else:
                return outcome_of(turn)
        return Outcome(Spent(), error=GONE)


def outcome_of(turn: Turn) -> Outcome:
    """Return what a turn came to."""
    if turn.response_message is None:
        return Outcome(turn.spent, error=turn.error or GONE)
    return Outcome(turn.spent, text_of(turn.response_message))
