"""Typed proxies over a carrier that is played here: what they send, read, and close."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

import msgspec
import pytest

from ayllu import schemas as s
from ayllu.schemas.proxy import add_methods

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("typed-proxies")]


class Echo(Protocol):
    """Say it again."""

    @s.webmethod(route="/say")
    async def say(self, text: str) -> str: ...

    @s.webmethod(route="/forget")
    async def forget(self) -> None: ...

    @s.webmethod(route="/repeat")
    def repeat(self, text: str) -> AsyncIterator[str]: ...


class Played:
    """A call whose batches of events are given; an exception among them is raised."""

    def __init__(self, *batches: list[bytes] | Exception, result: bytes | None = None) -> None:
        self._batches = list(batches)
        self.result = result
        self.closed = False
        self.sent: list[tuple[str, bytes, msgspec.Struct]] = []

    async def take(self) -> list[bytes]:
        batch = self._batches.pop(0) if self._batches else []
        if isinstance(batch, Exception):
            raise batch
        return batch

    def close(self) -> None:
        self.closed = True


def proxy_over(call: Played) -> Any:
    """Return a proxy of `Echo` whose every call is the played one."""

    class Target:
        pass

    async def carry(operation: s.Operation, payload: bytes, value: msgspec.Struct) -> Played:
        call.sent.append((operation.name, payload, value))
        return call

    target = Target()
    add_methods(target, s.operations_of(Echo), carry)
    return target


async def test_a_reply_is_typed() -> None:
    call = Played([b'"hi"'])
    assert await proxy_over(call).say("hi") == "hi"
    assert [(name, payload) for name, payload, _ in call.sent] == [("say", b'{"text":"hi"}')]
    assert call.closed


async def test_no_reply_is_none() -> None:
    assert await proxy_over(Played([b"null"])).forget() is None


@pytest.mark.parametrize("batches", [[], [[b"1", b"2"]], [[b"1"], [b"2"]]])
async def test_another_number_of_replies_than_one_is_an_error(batches: list[list[bytes]]) -> None:
    with pytest.raises(s.BusError):
        await proxy_over(Played(*batches)).say("hi")


async def test_a_wrong_argument_is_never_sent() -> None:
    call = Played()
    with pytest.raises(s.InvalidRequest, match=r"\$\.text"):
        await proxy_over(call).say(1)
    assert call.sent == []


async def test_events_come_in_order_and_then_the_result() -> None:
    call = Played([b'"a"', b'"b"'], [b'"c"'], result=b'"abc"')
    events = proxy_over(call).repeat("x")
    assert events.result is None
    assert [event async for event in events] == ["a", "b", "c"]
    assert events.result == b'"abc"'
    assert not call.closed
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def test_a_stream_that_is_left_early_closes_its_call() -> None:
    call = Played([b'"a"', b'"b"'])
    events = proxy_over(call).repeat("x")
    assert await anext(events) == "a"
    await events.aclose()
    assert call.closed
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def test_a_stream_that_is_dropped_closes_its_call() -> None:
    call = Played([b'"a"', b'"b"'])
    events = proxy_over(call).repeat("x")
    assert await anext(events) == "a"
    del events
    assert call.closed


async def test_a_stream_that_was_never_read_sent_nothing() -> None:
    call = Played()
    await proxy_over(call).repeat("x").aclose()
    assert (call.sent, call.closed) == ([], False)


async def test_an_error_ends_the_stream_and_closes_the_call() -> None:
    call = Played([b'"a"'], s.EngineDead("gone"))
    events = proxy_over(call).repeat("x")
    assert await anext(events) == "a"
    with pytest.raises(s.EngineDead):
        await anext(events)
    assert call.closed


async def test_an_event_of_another_type_is_refused_and_closes_the_call() -> None:
    call = Played([b"1"])
    with pytest.raises(s.InvalidRequest):
        await anext(proxy_over(call).repeat("x"))
    assert call.closed
