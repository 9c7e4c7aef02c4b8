"""The Groups API: groups are kept, told of, and written to by humans. Runners let their agents speak (`runner.py`)."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from ...bus.client import client
from ...schemas import (
    AgenticSystem,
    BusError,
    Group,
    GroupCreateRequest,
    GroupEnd,
    GroupEvent,
    GroupEventKind,
    GroupPostRequest,
    GroupRemark,
    Groups,
    InvalidRequest,
    NotFound,
)
from .conversation import Conversation
from .hearing import closed, posted
from .journal import Journal
from .records import JOURNAL, events_of, journal_subject
from .register import Register
from .validation import agents_of, check_group

log = logging.getLogger(__name__)

AGENT_SECONDS = 30.0
MAX_REASON = 1000


class GroupsActor(Groups):
    """Keeps groups.

    Args:
        register: the groups.
    """

    service_name = "groups"

    def __init__(self, register: Register) -> None:
        self._register = register

    async def create(self, request: GroupCreateRequest) -> Group:
        """Let a group begin its conversation; see `Groups.create`."""
        check_group(request)
        await self._check_agents(request)
        return (await self._register.create(request)).conversation.described()

    async def _check_agents(self, request: GroupCreateRequest) -> None:
        """Refuse a group with agents that are not there."""
        agents = client(AgenticSystem, self._register.bus, timeout=AGENT_SECONDS)
        missing = []
        for agent in agents_of(request):
            try:
                await agents.get(agent)
            except NotFound:
                missing.append(agent)
        if missing:
            raise InvalidRequest(f"there is no agent {', '.join(map(repr, missing))}")

    async def get(self, group_id: str) -> Group:
        """Return a group; see `Groups.get`."""
        return (await self._register.journal(group_id)).conversation.described()

    async def list(self) -> AsyncIterator[Group]:
        """List groups; see `Groups.list`."""
        for name in await self._register.names():
            try:
                journal = await self._register.journal(name)
            except NotFound:
                continue  # It was removed meanwhile.
            except BusError as error:
                if error.retryable:
                    raise
                log.warning("the group %r is not listed: %s", name, error)
                continue
            yield journal.conversation.described(remarks=False)

    async def delete(self, group_id: str) -> None:
        """Remove a group; see `Groups.delete`."""
        born = (await self._register.record(group_id)).born
        try:
            await self._end(group_id, GroupEnd.deleted, "the group was removed")
        except NotFound:
            pass  # A record without a journal is removed, too.
        except BusError as error:
            if error.retryable:
                raise
            # Nobody can read its journal, and so end it.
            subject = journal_subject(group_id, born)
            await self._register.bus.storage.streams.purge(JOURNAL.name, subject)
        await self._register.forget(group_id, born)

    async def close(self, group_id: str, reason: str = "") -> Group:
        """End a conversation; see `Groups.close`."""
        if len(reason) > MAX_REASON:
            raise InvalidRequest(f"reason: it has more than {MAX_REASON} characters")
        journal = await self._end(group_id, GroupEnd.closed, reason)
        return journal.conversation.described()

    async def _end(self, group: str, end: GroupEnd, reason: str) -> Journal:
        journal = await self._register.journal(group)
        await journal.change(lambda conversation, at: closed(conversation, end, reason, at))
        await self._register.wake(group, journal.conversation.born)
        return journal

    async def post(self, request: GroupPostRequest) -> GroupRemark:
        """Say something as a human; see `Groups.post`."""
        journal = await self._register.journal(request.group_id)
        made: list[GroupRemark] = []

        def decide(conversation: Conversation, at: float) -> list[GroupEvent]:
            found = posted(conversation, request, at)
            if isinstance(found, GroupRemark):
                made[:] = [found]
                return []
            assert found.remark is not None
            made[:] = [found.remark]
            return [found]

        await journal.change(decide)
        # Sent again, too: the runner may not have been told.
        await self._register.wake(request.group_id, journal.conversation.born)
        return made[0]

    async def events(self, group_id: str, index: int = 0) -> AsyncIterator[GroupEvent]:
        """Follow a conversation; see `Groups.events`."""
        if index < 0:
            raise InvalidRequest("an index is not negative")
        journal = await self._register.journal(group_id)
        ended = journal.conversation.ended
        if ended is not None and index > ended.index:
            return
        streams = self._register.bus.storage.streams
        async with streams.read(JOURNAL.name, journal.subject) as entries:
            async for entry in entries:
                for event in events_of(entry.payload):
                    if event.index >= index:
                        yield event
                    if event.kind is GroupEventKind.ended:
                        return
