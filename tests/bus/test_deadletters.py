"""Dead letters, on both storages."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ayllu.bus import deadletters
from ayllu.bus.deadletters import INLINE_BYTES, DeadLetter
from ayllu.bus.durable import Entry, Storage, StreamSpec
from ayllu.bus.memory import MemoryStorage
from ayllu.bus.nats import connect_nats
from ayllu.schemas import NotFound

pytestmark = pytest.mark.asyncio

_names = itertools.count()


class Running:
    """Opens a storage with a stream of this test's own."""

    def __init__(self, url: str) -> None:
        self.url = url
        number = f"{os.getpid()}_{next(_names)}"
        self.spec = StreamSpec(f"D{number}", (f"dead.{number}.>",), "memory", max_bytes=1 << 22)
        self.subject = f"dead.{number}.a"

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Storage]:
        if not self.url:
            storage = MemoryStorage()
            await storage.streams.ensure(self.spec)
            yield storage
            return
        async with connect_nats(self.url) as transport:
            await transport.storage.streams.ensure(self.spec)
            yield transport.storage

    async def entries(self, storage: Storage) -> list[Entry]:
        async with storage.streams.replay(self.spec.name) as entries:
            return [entry async for entry in entries]

    async def letters(self, storage: Storage) -> list[DeadLetter]:
        return [one for one in await deadletters.letters(storage) if one.subject == self.subject]


@pytest.fixture(params=["memory", "jetstream"])
def running(request: pytest.FixtureRequest) -> Running:
    return Running(request.getfixturevalue("nats_url") if request.param == "jetstream" else "")


@pytest.mark.requirement("dead-letters")
@pytest.mark.parametrize("size", [3, INLINE_BYTES + 1])
async def test_a_dead_letter_is_listed_and_replayed_once(running: Running, size: int) -> None:
    async with running() as storage:
        payload = os.urandom(size)
        await storage.streams.append(running.subject, payload, msg_id="command", expires=0.0)
        [entry] = await running.entries(storage)
        id_ = await deadletters.bury(storage, entry, reason="no model", attempts=5)
        assert await deadletters.bury(storage, entry, reason="no model", attempts=5) == id_
        [letter] = await running.letters(storage)
        assert (letter.id, letter.msg_id, letter.sequence) == (id_, "command", entry.sequence)
        assert (letter.reason, letter.attempts, letter.size) == ("no model", 5, size)
        await deadletters.replay(storage, id_)
        assert await running.letters(storage) == []
        with pytest.raises(NotFound):
            await deadletters.replay(storage, id_)
        _, again = await running.entries(storage)
        assert (again.subject, again.payload, again.expired) == (entry.subject, payload, False)
        assert again.msg_id != entry.msg_id


@pytest.mark.requirement("dead-letters")
async def test_what_dies_again_gets_a_letter_again(running: Running) -> None:
    async with running() as storage:
        entry = Entry(running.subject, 7, b"x", "id")
        one = await deadletters.bury(storage, entry, reason="a", attempts=5)
        await deadletters.remove(storage, one)
        assert await deadletters.bury(storage, entry, reason="b", attempts=6) == one
        assert [letter.reason for letter in await running.letters(storage)] == ["b"]
        await deadletters.remove(storage, one)


@pytest.mark.requirement("dead-letters")
@pytest.mark.parametrize("id_", ["", "nothing", "*", ">", "a.b"])
async def test_an_unknown_letter(running: Running, id_: str) -> None:
    async with running() as storage:
        with pytest.raises(NotFound):
            await deadletters.replay(storage, id_)
        with pytest.raises(NotFound):
            await deadletters.remove(storage, id_)
