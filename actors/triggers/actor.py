"""The Triggers API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

from ...bus.bus import Bus
from ...schemas import (
    NotFound,
    Trigger,
    TriggerCreateRequest,
    TriggerPreview,
    TriggerPreviewRequest,
    Triggers,
    encode,
)
from .answering import Fire, Skip, answer
from .patterns import whole_pattern
from .records import TriggerRecord
from .schedules import next_due
from .shelf import Shelf, open_shelf
from .validation import checked_subject
from .worker import TriggerWorker


class TriggersActor(Triggers):
    """Keeps triggers; a `TriggerWorker` answers for them."""

    service_name = "triggers"

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    async def create(self, request: TriggerCreateRequest) -> Trigger:
        """Create a trigger; see `Triggers.create`."""
        subject = await checked_subject(self._shelf.agents, request)
        return await self._described(await self._shelf.add(request, subject))

    async def get(self, name: str) -> Trigger:
        """Return a trigger; see `Triggers.get`."""
        return await self._described(await self._shelf.record(name))

    async def list(self) -> AsyncIterator[Trigger]:
        """List all triggers; see `Triggers.list`."""
        for name in await self._shelf.names():
            record = await self._shelf.find(name)
            if record is not None:  # It may have been removed meanwhile.
                yield await self._described(record)

    async def delete(self, name: str) -> None:
        """Remove a trigger; see `Triggers.delete`."""
        await self._shelf.remove(name)

    async def preview(self, request: TriggerPreviewRequest) -> TriggerPreview:
        """See what a trigger would make of an event; see `Triggers.preview`."""
        record = await self._shelf.record(request.name)
        subject = record.subject if request.subject is None else whole_pattern(request.subject)
        made = answer(record, subject, 0, encode(request.event))
        if isinstance(made, Skip):
            return TriggerPreview(starts=False, reason="it does not pass the filter")
        if not isinstance(made, Fire):
            return TriggerPreview(starts=False, reason=made.reason)
        agent = made.request.agent_uuid
        if await self._shelf.agents.get(agent) is None:
            raise NotFound(f"there is no agent {agent!r}")
        [message] = made.request.messages
        return TriggerPreview(starts=True, message=str(message.content), limits=made.request.limits)

    async def _described(self, record: TriggerRecord) -> Trigger:
        counted = await self._shelf.counted(record)
        schedule, last = record.config.schedule, counted.last_fired
        return Trigger(
            name=record.name,
            created_at=record.created_at,
            config=record.config,
            subject=record.subject,
            fired=counted.fired,
            skipped=counted.skipped,
            refused=counted.refused,
            last_fired_at=datetime.fromtimestamp(last, UTC) if last else None,
            last_error=counted.last_error,
            next_at=next_due(schedule, record.created_at, datetime.now(UTC)) if schedule else None,
        )


async def open_triggers(bus: Bus) -> tuple[TriggersActor, TriggerWorker]:
    """Return what serves triggers; what keeps them on the bus is made where it is missing."""
    shelf = await open_shelf(bus)
    return TriggersActor(shelf), TriggerWorker(shelf)
