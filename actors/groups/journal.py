"""The journal of a group. Any number may write: an entry stands only where its writer knew all entries before it."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import uuid4

import anyio

from ...bus.bus import Bus
from ...schemas import BusError, Conflict, GroupEvent
from ..patience import persistently
from .conversation import Conversation
from .records import JOURNAL, events_of, journal_subject, written

PATIENCE = 120.0
"""How long a writer bears with a bus that does not answer, in seconds; another one may write long before."""
TRIES = 100
"""How often a change is tried while others write."""


class Fenced(Exception):  # noqa: N818 - it says what happened
    """Somebody else wrote meanwhile: what was decided may be wrong by now."""


class Journal:
    """The journal of one group.

    Attributes:
        conversation: what has happened, by the entries that were read and written.
        last: the sequence of the last of them.
    """

    def __init__(self, bus: Bus, group: str, born: str) -> None:
        self.conversation = Conversation(born)
        self.last = 0
        self.subject = journal_subject(group, born)
        self._streams = bus.storage.streams
        self._writer = uuid4().hex
        self._writes = 0

    async def load(self) -> None:
        """Read what stands there and was not read yet.

        Raises:
            BusError: no answer; or, not retryable, there is an entry that is none.
        """
        replay = self._streams.replay(JOURNAL.name, self.subject, after=self.last)
        async with replay as entries:
            async for entry in entries:
                self._apply(events_of(entry.payload), entry.sequence)

    def _apply(self, events: list[GroupEvent], sequence: int) -> None:
        try:
            for event in events:
                self.conversation.apply(event)
        except (AssertionError, ArithmeticError, LookupError, ValueError) as error:
            # Somebody else wrote it.
            raise BusError(
                f"a group has an event that is none: {error!r}", retryable=False
            ) from error
        self.last = sequence

    async def write(self, events: list[GroupEvent]) -> None:
        """Let events happen, all of them or none.

        Raises:
            Fenced: there are entries that were not read.
            BusError: the bus did not answer for `PATIENCE` seconds.
        """
        if not events:
            return
        self._writes += 1
        # The same id for each try: one that landed unanswered is found again.
        msg_id = f"{self.subject}:{self.last}:{self._writer}:{self._writes}"
        payload, last = written(events), self.last
        # Not to be cancelled (it is bounded): whether it is written must be known.
        with anyio.CancelScope(shield=True):
            try:
                stored = await persistently(
                    lambda: self._streams.append(
                        self.subject, payload, msg_id=msg_id, expected_last=last
                    ),
                    patience=PATIENCE,
                )
            except Conflict as error:
                raise Fenced(f"{self.subject} has another writer") from error
            self._apply(events, stored.sequence)

    async def change(self, decide: Callable[[Conversation, float], list[GroupEvent]]) -> None:
        """Let events happen that are decided by what has happened before, whoever else writes.

        Raises:
            AylluError: what ``decide`` raises; `BusError`: no answer, and whether they happened is not known.
        """
        for _ in range(TRIES):
            await self.load()
            try:
                await self.write(decide(self.conversation, time.time()))
            except Fenced:
                continue
            return
        raise BusError(f"{self.subject} has too many writers")

    async def changed(self) -> None:
        """Return once somebody else has written."""
        async with self._streams.read(JOURNAL.name, self.subject, after=self.last) as entries:
            await anext(aiter(entries))
