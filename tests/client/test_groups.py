"""Whatever breaks on the way: who follows a group gets each event once, and what is said is said once."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu.client import GroupClient, groups
from ayllu.schemas import (
    AylluError,
    BusError,
    Conflict,
    GroupEvent,
    GroupEventKind,
    GroupPostRequest,
    GroupRemark,
    NotFound,
    Operation,
    decode,
    encode,
)

pytestmark = pytest.mark.requirement("group-client")

AT = datetime(2026, 1, 1, tzinfo=UTC)


def event(index: int, count: int) -> GroupEvent:
    kind = GroupEventKind.ended if index == count - 1 else GroupEventKind.waiting
    return GroupEvent(index=index, at=AT, kind=kind)


@dataclass
class Call:
    """Gives out batches, and then breaks, or ends."""

    batches: list[list[bytes]]
    error: AylluError | None
    result: bytes | None = None
    closed: bool = False

    async def take(self) -> list[bytes]:
        if self.batches:
            return self.batches.pop(0)
        if self.error is not None:
            raise self.error
        return []

    def close(self) -> None:
        self.closed = True


@dataclass
class Server:
    """A group with so many events; calls break after so many each, and then no more.

    Attributes:
        count: how many events there are.
        breaks: after how many events each call breaks; -1 for a request that does not arrive.
        jump: whether an event is lost on the way once.
        refuse: what a post is answered with.
    """

    count: int = 1
    breaks: list[int] = field(default_factory=list)
    jump: bool = False
    refuse: AylluError | None = None
    said: list[GroupPostRequest] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    async def call(
        self, operation: Operation, payload: bytes, *, timeout: float | None = None
    ) -> Call:
        broken = self.breaks.pop(0) if self.breaks else None
        if broken == -1:
            raise BusError("the connection broke")
        made = self._post(payload, broken) if operation.name == "groups.post" else None
        made = made or self._events(operation, payload, broken)
        self.calls.append(made)
        return made

    def _post(self, payload: bytes, broken: int | None) -> Call:
        request = decode(payload, GroupPostRequest)
        self.said.append(request)
        remark = GroupRemark(1, request.member, request.text, AT, message_id=request.message_id)
        error = self.refuse or (BusError("lost") if broken is not None else None)
        return Call([] if error else [[encode(remark)]], error)

    def _events(self, operation: Operation, payload: bytes, broken: int | None) -> Call:
        first = operation.read(payload).index  # type: ignore[attr-defined]
        told = [encode(event(index, self.count)) for index in range(first, self.count)]
        if self.jump and len(told) > 1:
            self.jump = False
            del told[0]
        if broken is None:
            return Call([told], None)
        return Call([[one] for one in told[:broken]], BusError("the connection broke"))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "FIRST_WAIT", 0.0001)
    monkeypatch.setattr(groups, "LONGEST_WAIT", 0.001)


async def follow(server: Server, index: int = 0, patience: float = 5.0) -> list[int]:
    with anyio.fail_after(10):
        async with GroupClient(server, "g").events(index, patience=patience) as events:
            return [one.index async for one in events]


@given(st.integers(1, 6), st.lists(st.integers(-1, 4), max_size=8), st.booleans())
@settings(max_examples=50)
def test_each_event_comes_once(count: int, breaks: list[int], jump: bool) -> None:
    server = Server(count, breaks, jump)
    assert anyio.run(follow, server) == list(range(count))
    assert all(call.closed for call in server.calls)


@pytest.mark.asyncio
async def test_from_an_event_on() -> None:
    assert await follow(Server(5), 3) == [3, 4]
    assert await follow(Server(5), 5) == []


@pytest.mark.asyncio
async def test_what_is_not_there_and_what_stays_away_is_raised() -> None:
    server = Server(3, [-1] * 1000)
    with pytest.raises(BusError):
        await follow(server, patience=0.01)

    class Nothing(Server):
        async def call(
            self, operation: Operation, payload: bytes, *, timeout: float | None = None
        ) -> Call:
            return Call([], NotFound("there is no group"))

    with pytest.raises(NotFound):
        await follow(Nothing())

    class Silent(Server):
        async def call(
            self, operation: Operation, payload: bytes, *, timeout: float | None = None
        ) -> Call:
            await anyio.sleep_forever()
            raise AssertionError

    with pytest.raises(BusError, match="not reached"):
        await follow(Silent(), patience=0.01)


@pytest.mark.asyncio
async def test_what_is_said_is_said_under_one_id() -> None:
    server = Server(breaks=[-1, 0, 0])
    remark = await GroupClient(server, "g").post("Zoe", "Hello.")
    assert (remark.member, remark.text) == ("Zoe", "Hello.")
    assert len(server.said) == 3
    assert {request.message_id for request in server.said} == {remark.message_id}
    assert all(call.closed for call in server.calls)
    again = await GroupClient(server, "g").post("Zoe", "Hello.", message_id="m1")
    assert again.message_id == "m1"
    server.refuse = Conflict("it is not your turn")
    with pytest.raises(Conflict):
        await GroupClient(server, "g").post("Zoe", "Hello.")
