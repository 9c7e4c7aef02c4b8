"""The journal of a turn in the hands of the one executor that holds the claim."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from uuid import uuid4

import anyio

from ...schemas import BusError, Conflict, encode
from .desk import Desk
from .entries import Fenced, deltas_made, packed, standing_deltas, standing_records
from .records import Claimed, Delta, JournalRecord
from .streams import delta_subject, journal_subject
from .timeline import DeltaOrder
from .turn import Turn

log = logging.getLogger(__name__)

PATIENCE = 120.0
"""How long an executor bears with a bus that does not answer, in seconds; another one may take over long before."""
RETRY_SECONDS = 0.25


class Journal:
    """The journal of one turn in the hands of an executor.

    Attributes:
        turn: what has happened, by the records that were written and read.
    """

    def __init__(self, desk: Desk, turn: str) -> None:
        self.turn = Turn()
        self._desk = desk
        self._bus = desk.office.bus
        self._claims = desk.office.claims
        self._writer = uuid4().hex  # not even two journals of one process are one writer
        self._names = (desk.agent, turn)
        self._subject = journal_subject(*self._names)
        self._deltas = delta_subject(*self._names)
        self._last = 0
        self._noted: list[JournalRecord] = []
        self._writes = 0

    async def load(self) -> None:
        """Read what stands there, in place of what was noted."""
        self.turn, self._noted = Turn(), []
        async with standing_records(self._bus, self._claims, *self._names) as records:
            async for sequence, record in records:
                self.turn.apply(record)
                self._last = sequence

    def note(self, *records: JournalRecord) -> None:
        """Apply records; they are known to nobody, and lost with this process, until they are written."""
        for record in records:
            self.turn.apply(record)
            self._noted.append(record)

    async def write(self, *records: JournalRecord) -> None:
        """Write what was noted, and more records: all in one entry, so that all of them are there or none.

        Raises:
            Fenced: another executor wrote meanwhile.
            BusError: the bus did not answer for `PATIENCE` seconds.
        """
        self.note(*records)
        noted = list(self._noted)
        if noted:
            # Whoever is cancelled here does not know whether it is written: if so, its next write is fenced off.
            self._writes += 1
            self._last = await self._store(await packed(self._claims, noted))
            del self._noted[: len(noted)]
            for record in noted:
                self._desk.office.hub.tell(*self._names, record)

    async def _store(self, payload: bytes) -> int:
        # The same id for each try: one that landed unanswered is found again.
        msg_id = f"{self._subject}:{self._last}:{self._writer}:{self._writes}"
        give_up = anyio.current_time() + PATIENCE
        while True:
            try:
                # Not to be cancelled (it is bounded): whether it is written must be known.
                with anyio.CancelScope(shield=True):
                    stored = await self._bus.storage.streams.append(
                        self._subject, payload, msg_id=msg_id, expected_last=self._last
                    )
            except Conflict as error:
                raise Fenced(f"{self._subject} has another writer") from error
            except BusError as error:
                if not error.retryable or anyio.current_time() > give_up:
                    raise
                log.warning("a record waits for the bus: %s", error)
                await anyio.sleep(RETRY_SECONDS)
            else:
                return stored.sequence

    async def claim(self, executor: str, at: float) -> list[str]:
        """Take the turn over from an executor that is lost, and return the deltas that it told in the open step.

        Raises:
            Fenced: another one was faster.
        """
        turn = self.turn
        streams = self._bus.storage.streams
        made = await deltas_made(self._bus)
        epoch = turn.epoch + (made != turn.deltas)
        await self.write(
            Claimed(at=at, attempt=turn.attempt + 1, executor=executor, epoch=epoch, deltas=made)
        )
        # From this entry on, what the old attempt still posts counts for nobody.
        seal = Delta(turn.attempt, turn.index)
        stored = await streams.append(
            self._deltas, encode(seal), msg_id=f"{self._deltas}:{turn.attempt}"
        )
        order = DeltaOrder()
        texts: dict[int, str] = {}
        async with standing_deltas(self._bus, *self._names) as deltas:
            async for sequence, delta in deltas:
                if sequence < stored.sequence:
                    for index, text in order.accepted(delta):
                        texts.setdefault(index, text)
        return list(_contiguous(texts, turn.index))

    async def post(self, index: int, texts: list[str]) -> None:
        """Tell readers tokens; they may be lost.

        Raises:
            Fenced: another executor may go on with the turn by now: nobody must see what this one thinks.
        """
        self._desk.check()
        delta = Delta(self.turn.attempt, index, texts)
        self._desk.office.hub.tell(*self._names, delta)
        try:
            await self._bus.storage.streams.post(self._deltas, encode(delta))
        except BusError as error:
            log.debug("deltas were not told: %s", error)


def _contiguous(texts: dict[int, str], index: int) -> Iterator[str]:
    while index in texts:
        yield texts[index]
        index += 1
