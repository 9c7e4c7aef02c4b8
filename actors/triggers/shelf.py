"""The triggers of a deployment, as they are kept on the bus, and what came of them."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from msgspec.structs import replace

from ...bus.bus import Bus
from ...bus.durable import KeyValue
from ...schemas import Conflict, NotFound, Overloaded, TriggerCreateRequest, decode, encode
from ..agents.desk import AGENT_BUCKET
from ..agents.entries import ensure_streams
from ..events import EVENTS, ensure_events
from .records import COUNT_BUCKET, SIGNAL, TRIGGER_BUCKET, Counted, TriggerRecord

log = logging.getLogger(__name__)

MAX_TRIGGERS = 1000
"""Each is a consumer that each worker asks for events."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """The triggers of a deployment. Opened by `open_shelf`.

    Attributes:
        bus: the bus.
        agents: those that may be started.
    """

    bus: Bus
    agents: KeyValue
    _triggers: KeyValue
    _counts: KeyValue

    async def add(self, config: TriggerCreateRequest, subject: str) -> TriggerRecord:
        """Keep a trigger: it is for the events that come after this.

        Raises:
            Conflict: there is another one of its name.
            Overloaded: there are too many.
        """
        known = await self.find(config.name)
        if known is None:
            if len(await self._triggers.keys()) >= MAX_TRIGGERS:
                raise Overloaded(f"there are {MAX_TRIGGERS} triggers already", retryable=False)
            last = (await self.bus.storage.streams.state(EVENTS.name)).last
            record = TriggerRecord(config, subject, time.time(), last)
            try:
                await self._triggers.create(config.name, encode(record))
            except Conflict:
                known = await self.record(config.name)
            else:
                await self.signal(config.name)
                return record
        if known.config != config:
            raise Conflict(
                f"there is a trigger {config.name!r} already, with another configuration"
            )
        return known

    async def find(self, name: str) -> TriggerRecord | None:
        """Return a trigger, if there is one of this name."""
        entry = await self._triggers.get(name)
        return None if entry is None else decode(entry.value, TriggerRecord)

    async def record(self, name: str) -> TriggerRecord:
        """Return a trigger.

        Raises:
            NotFound: there is none of this name.
        """
        found = await self.find(name)
        if found is None:
            raise NotFound(f"there is no trigger {name!r}")
        return found

    async def names(self) -> list[str]:
        """Return the names of all triggers, sorted."""
        return await self._triggers.keys()

    async def remove(self, name: str) -> None:
        """Forget a trigger.

        Raises:
            NotFound: there is none of this name.
        """
        record = await self.record(name)
        await self._triggers.delete(name)
        await self.signal(name)
        await self.clear(record)

    async def clear(self, record: TriggerRecord) -> None:
        """Remove what was kept for a trigger that is gone."""
        await self.bus.storage.streams.end_work(EVENTS.name, record.consumer)
        await self._counts.delete(record.id)

    async def signal(self, name: str) -> None:
        """Let workers look at a trigger at once; they come by themselves, if later."""
        await self.bus.transport.publish(SIGNAL, name.encode())

    async def counted(self, record: TriggerRecord) -> Counted:
        """Return what came of a trigger."""
        entry = await self._counts.get(record.id)
        return Counted() if entry is None else decode(entry.value, Counted)

    async def count(self, record: TriggerRecord, more: Counted) -> None:
        """Add to what came of a trigger.

        Raises:
            Conflict: another worker added meanwhile; try again.
        """
        entry = await self._counts.get(record.id)
        known = Counted() if entry is None else decode(entry.value, Counted)
        await self._counts.update(
            record.id, encode(added(known, more)), revision=entry.revision if entry else 0
        )


@dataclass(slots=True)
class Counts:
    """What a worker has counted and not yet kept, for each trigger."""

    held: dict[str, tuple[TriggerRecord, Counted]] = field(default_factory=dict)

    def add(self, record: TriggerRecord, more: Counted) -> None:
        """Count something."""
        known = self.held.get(record.id, (record, Counted()))[1]
        self.held[record.id] = record, added(known, more)

    def drop(self, record: TriggerRecord) -> None:
        """Forget what was counted for a trigger that is gone."""
        self.held.pop(record.id, None)

    async def keep(self, shelf: Shelf) -> None:
        """Keep what was counted; what cannot be kept now stays here.

        Raises:
            BusError: no answer; what was counted may then be kept twice.
        """
        for id_, (record, more) in list(self.held.items()):
            try:
                await shelf.count(record, more)
            except Conflict as error:
                log.debug("another worker counts, too: %s", error)
                continue
            # More may have been counted meanwhile.
            now = self.held.get(id_)
            if now is None:
                continue
            left = replace(
                now[1],
                fired=now[1].fired - more.fired,
                skipped=now[1].skipped - more.skipped,
                refused=now[1].refused - more.refused,
            )
            if left.fired or left.skipped or left.refused:
                self.held[id_] = record, left
            else:
                del self.held[id_]


def added(known: Counted, more: Counted) -> Counted:
    """Return the sum of what was counted: what is later counts."""
    return Counted(
        known.fired + more.fired,
        known.skipped + more.skipped,
        known.refused + more.refused,
        max(known.last_fired, more.last_fired),
        more.last_error or known.last_error,
    )


async def open_shelf(bus: Bus) -> Shelf:
    """Return the triggers of a deployment; what keeps them is made where it is missing."""
    await ensure_events(bus)
    await ensure_streams(bus)
    buckets = [
        await bus.storage.key_value(name) for name in (AGENT_BUCKET, TRIGGER_BUCKET, COUNT_BUCKET)
    ]
    return Shelf(bus, *buckets)
