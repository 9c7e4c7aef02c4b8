"""What a runner does for one group, as long as it has its lease: what the machine says, one thing after the other."""

from __future__ import annotations

import time

import anyio

from ...bus.bus import Bus
from .conversation import Ask
from .deciding import Done, Forget, Listen, Wait, Withdraw, Write, next_action
from .hearing import Outcome, heard, withdrawn
from .journal import Fenced, Journal
from .records import JOURNAL
from .turns import GroupTurns


class Work:
    """The work for one group.

    Args:
        bus: the bus.
        turns: lets agents take turns.
        group: the group.
        born: which of those that had its name.
    """

    def __init__(self, bus: Bus, turns: GroupTurns, group: str, born: str) -> None:
        self._bus = bus
        self._turns = turns
        self._journal = Journal(bus, group, born)

    async def run(self) -> Wait | Done:
        """Work until nothing is to be done for a while, or ever.

        Raises:
            AylluError: it cannot go on at present; not retryable, never.
        """
        while True:
            await self._journal.load()
            action = next_action(self._journal.conversation, time.time())
            try:
                if isinstance(action, Write):
                    await self._journal.write(action.events)
                elif isinstance(action, Listen):
                    await self._listen(action)
                elif isinstance(action, Withdraw):
                    for ask in action.asks:
                        await self._withdraw(ask)
                elif isinstance(action, Forget):
                    await self._bus.storage.streams.purge(JOURNAL.name, self._journal.subject)
                    return Done()
                else:
                    return action
            except Fenced:
                continue

    async def _listen(self, action: Listen) -> None:
        """Wait for the first of some turns to end; until a time, and as long as nobody else writes."""
        conversation = self._journal.conversation
        first: list[tuple[Ask, Outcome]] = []

        async with anyio.create_task_group() as tasks:

            async def hear(ask: Ask) -> None:
                outcome = await self._turns.outcome(conversation, ask)
                first.append((ask, outcome))
                tasks.cancel_scope.cancel()

            async def look() -> None:
                await self._journal.changed()
                tasks.cancel_scope.cancel()

            async def end(at: float) -> None:
                await anyio.sleep(at - time.time())
                tasks.cancel_scope.cancel()

            for ask in action.asks:
                tasks.start_soon(hear, ask)
            tasks.start_soon(look)
            if action.until is not None:
                tasks.start_soon(end, action.until)
        if first:
            ask, outcome = first[0]
            await self._journal.write(heard(conversation, ask, outcome, time.time()))

    async def _withdraw(self, ask: Ask) -> None:
        outcome = await self._turns.cancel(ask)
        await self._journal.write(withdrawn(self._journal.conversation, ask, outcome, time.time()))
