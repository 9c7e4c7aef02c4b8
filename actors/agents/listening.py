"""What is asked of an agent while one of its turns runs or waits: to cancel it, or what people decide about its calls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import anyio

from ...bus.durable import Entry
from ...schemas import AylluError, Cancelled, TurnRef
from ..patience import persistently
from .approvals import Decisions
from .desk import Desk
from .entries import turn_of
from .records import Cancel, Command, Decide, Delete, Execute, Finished
from .turn import Turn


class Listening:
    """Takes note of commands behind that of a turn.

    Args:
        desk: the executor's, for the agent.
        entry: the entry of the turn's command.
        command: the turn.

    Attributes:
        cancelled: why the turn must end, if it must.
        decisions: what people have decided.
        ended: turns that this one started, and that have ended.
        heard: set when anything was asked.
    """

    def __init__(self, desk: Desk, entry: Entry, command: Execute) -> None:
        self.cancelled: AylluError | None = None
        self.decisions = Decisions()
        self.ended: set[TurnRef] = set()
        self.heard = anyio.Event()
        self._desk = desk
        self._turn = command.turn
        self._names = frozenset((command.turn, turn_of(entry, command)))
        self._seen = entry.sequence
        self._looking = anyio.Lock()

    def has_news(self, turn: Turn) -> bool:
        """Tell whether something was asked that is not dealt with; what was decided stands among the commands to the end."""
        if self.cancelled is not None or self.decisions.concern(turn):
            return True
        running = turn.running_children
        return any(TurnRef(one.task.agent, one.turn) in self.ended for _, _, one in running)

    async def look(self) -> None:
        """Take note of what was asked since the last look.

        Cancelling it loses nothing: the desk is told that there is something to see.
        """
        async with self._looking:
            if self._desk.look.is_set():  # Else somebody waits for this very one.
                self._desk.look = anyio.Event()
            try:
                later = partial(self._desk.later, self._seen)
                commands, self._seen = await persistently(later)
            except BaseException:
                self._desk.look.set()
                raise
            self.cancelled = self.cancelled or self.cancel_among(commands)
            for command in commands:
                if isinstance(command, Decide) and command.turn in self._names:
                    self.decisions.add(command)
                elif isinstance(command, Finished) and command.turn in self._names:
                    self.ended.add(command.child)
            if commands:
                self.heard.set()

    async def watch(self, scope: anyio.CancelScope) -> None:
        """Look whenever there may be something, and cancel a scope when the turn must end."""
        while self.cancelled is None:
            await self._desk.look.wait()
            await self.look()
        scope.cancel()

    def cancel_among(self, commands: Sequence[Command]) -> AylluError | None:
        """Return why the turn must end, if one of these commands says so."""
        for command in commands:
            match command:
                case Cancel() if command.turn in self._names:
                    return Cancelled(command.reason or "the turn was cancelled")
                case Execute() if command.interrupt and command.turn != self._turn:
                    return Cancelled("another turn took the place of this one")
                case Delete():
                    return Cancelled("the agent was deleted")
        return None
