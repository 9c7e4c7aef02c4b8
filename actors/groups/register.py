"""Groups on the bus: which there are, their journals, and how runners are told of them."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from uuid import uuid4

import anyio

from ...bus.bus import Bus
from ...bus.durable import KeyValue
from ...bus.subjects import encode_token
from ...schemas import (
    Conflict,
    GroupCreateRequest,
    GroupEventKind,
    NotFound,
    decode,
    encode,
)
from .conversation import Conversation
from .deciding import turn_of
from .journal import Journal
from .records import (
    GROUP_BUCKET,
    JOURNAL,
    WAKE,
    GroupRecord,
    ensure_streams,
    events_of,
    journal_subject,
    wake_subject,
)

MAX_TURNS = 10**6
"""More than a group can have."""
RESTING = (GroupEventKind.waiting, GroupEventKind.ended)
"""After these a group has nothing to do until somebody speaks, or a time that a wake-up tells is over."""


class Register:
    """The groups of a deployment. Opened by `open_register`."""

    def __init__(self, bus: Bus, records: KeyValue) -> None:
        self.bus = bus
        self._records = records

    async def create(self, request: GroupCreateRequest) -> Journal:
        """Keep a group; the journal begins.

        Raises:
            Conflict: there is a group of this name, created with something else.
            InvalidRequest: the name is too long to be part of subjects.
        """
        digest = hashlib.sha256(encode(request)).hexdigest()
        born, group = uuid4().hex[:16], request.uuid
        encode_token(turn_of(group, born, MAX_TURNS))
        journal = Journal(self.bus, group, born)
        created = Conversation(born).event(GroupEventKind.created, time.time(), config=request)
        await journal.write([created])
        # Not to be cancelled (it is bounded): nobody wakes a group later that stands there.
        with anyio.CancelScope(shield=True):
            try:
                await self._records.create(group, encode(GroupRecord(born, digest)))
            except Conflict as error:
                await self.bus.storage.streams.purge(JOURNAL.name, journal.subject)
                known = await self.record(group)
                if known.digest != digest:
                    message = f"there is a group {group!r} already, created with something else"
                    raise Conflict(message) from error
                born = known.born
            await self.wake(group, born)
        return await self._journal(group, born)

    async def record(self, group: str) -> GroupRecord:
        """Return which conversation a group has.

        Raises:
            NotFound: there is no such group.
        """
        entry = await self._records.get(group)
        if entry is None:
            raise NotFound(f"there is no group {group!r}")
        return decode(entry.value, GroupRecord)

    async def journal(self, group: str) -> Journal:
        """Return the journal of a group, with all that stands there.

        Raises:
            NotFound: there is no such group.
        """
        return await self._journal(group, (await self.record(group)).born)

    async def _journal(self, group: str, born: str) -> Journal:
        journal = Journal(self.bus, group, born)
        await journal.load()
        if journal.conversation.config is None:
            raise NotFound(f"there is no group {group!r}")
        return journal

    async def names(self) -> list[str]:
        """Return the names of all groups, sorted."""
        return await self._records.keys()

    async def forget(self, group: str, born: str) -> None:
        """Let the name of a group that was removed be free for another one, unless another one has it by now."""
        entry = await self._records.get(group)
        if entry is not None and decode(entry.value, GroupRecord).born == born:
            with suppress(Conflict):
                await self._records.delete(group, revision=entry.revision)

    async def wake_if_lost(self, group: str) -> None:
        """Wake a group in whose journal something stands that no runner was told of: who wrote it was killed in between.

        Raises:
            AylluError: no answer; or there is no such group, or no journal of it.
        """
        streams, born = self.bus.storage.streams, (await self.record(group)).born
        last = await streams.last(JOURNAL.name, journal_subject(group, born))
        if last is None or events_of(last.payload)[-1].kind in RESTING:
            return
        if await streams.last(WAKE.name, wake_subject(group, born)) is None:
            await self.wake(group, born)

    async def wake(self, group: str, born: str) -> None:
        """Tell runners that a group has something to do.

        Not to be cancelled (it is bounded): what is written already is done by nobody whom nobody tells.
        """
        msg_id = f"wake group {group} {uuid4().hex}"
        with anyio.CancelScope(shield=True):
            await self.bus.storage.streams.append(wake_subject(group, born), b"", msg_id=msg_id)


async def open_register(bus: Bus) -> Register:
    """Return the groups of a deployment; what keeps them is made where it is missing."""
    await ensure_streams(bus)
    return Register(bus, await bus.storage.key_value(GROUP_BUCKET))
