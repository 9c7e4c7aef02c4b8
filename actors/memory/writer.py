"""The writer: a request becomes one batch of the log, checked against the state that it changes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Literal
from uuid import uuid4

import anyio

from ...bus.bus import Bus
from ...bus.durable import NewEntry, Objects
from ...schemas import AylluError, BusError, Conflict, DocumentsChanged, encode
from ..events import event_subject, publish_event
from .log import STREAM, Change, Claimed, DocumentStored, batch
from .replica import Replica

log = logging.getLogger(__name__)

CLEAN_UP_SECONDS = 5.0
TELL_SECONDS = 10.0

Check = Callable[[], Awaitable[None]]
"""Raises where the state does not allow the change."""


class Writer:
    """Appends changes to the log, one request at a time.

    Args:
        bus: the bus.
        replica: the state that requests are checked against.
        objects: where large documents go.
    """

    def __init__(self, bus: Bus, replica: Replica, objects: Objects) -> None:
        self._bus = bus
        self._streams = bus.storage.streams
        self._limit = bus.transport.max_payload // 2
        self._replica = replica
        self._objects = objects
        self._turn = anyio.Lock()

    async def write(self, changes: Sequence[tuple[str, Change]], check: Check) -> None:
        """Append changes whole or not at all; returns when they stand in the log.

        Args:
            changes: subjects and what happens there.
            check: asked with the state at the very entry of the log that the changes follow.

        Raises:
            AylluError: what the check raises; nothing was changed.
            BusError: no answer; the change may stand there, or may not.
            Overloaded: the log is full.
        """
        request = uuid4().hex
        claimed: list[str] = []
        sent = False
        try:
            entries = batch(request, [await self._claim(*item, claimed) for item in changes])
            async with self._turn:
                sent = True
                await self._append(entries, check)
        except BaseException as error:
            refused = isinstance(error, AylluError) and not isinstance(error, BusError)
            # What was cancelled, or not answered, may have landed: what it refers to stays; the replica's care removes it.
            if refused or not sent:
                await self._remove(claimed)
            raise

    async def tell(
        self, bank: str, change: Literal["inserted", "updated", "deleted"], documents: Sequence[str]
    ) -> None:
        """Tell programs and triggers what a request has changed; at most once: the change itself stands."""
        event = DocumentsChanged(bank, change, list(documents))
        subject = event_subject("document", bank, change)
        # Who hangs up meanwhile has changed them none the less.
        with anyio.move_on_after(TELL_SECONDS, shield=True):
            await publish_event(self._bus, subject, event, f"documents {uuid4().hex}")

    async def _remove(self, claimed: Sequence[str]) -> None:
        with anyio.move_on_after(CLEAN_UP_SECONDS, shield=True), suppress(AylluError):
            for name in claimed:
                await self._objects.delete(name)

    async def _claim(self, subject: str, change: Change, claimed: list[str]) -> tuple[str, Change]:
        """Put a large document into the object store, and return what stands in the log for it."""
        if not isinstance(change, DocumentStored):
            return subject, change
        payload = encode(change)
        if len(payload) <= self._limit:
            return subject, change
        name = uuid4().hex
        claimed.append(name)
        await self._objects.put(name, payload)
        return subject, Claimed(request="", object=name, sha256=hashlib.sha256(payload).hexdigest())

    async def _append(self, entries: Sequence[NewEntry], check: Check) -> None:
        unanswered: BusError | None = None
        while True:
            sent = False
            try:
                await self._replica.current()
                if unanswered is not None and await self._stands(entries[-1]):
                    return
                expected = self._replica.applied
                await check()
                sent = True
                await self._streams.append_batch(entries, expected_last=expected)
                return
            except AylluError as error:
                if sent and isinstance(error, Conflict):
                    # Somebody else wrote meanwhile: look again.
                    log.debug("another memory actor wrote first")
                elif unanswered is not None:
                    # Whether the first attempt has landed is not known: it may be what the check has found.
                    raise unanswered from error
                elif sent and isinstance(error, BusError):
                    unanswered = error
                else:
                    raise

    async def _stands(self, entry: NewEntry) -> bool:
        last = await self._streams.last(STREAM, entry.subject)
        return last is not None and last.msg_id == entry.msg_id
