"""A small API of the tests' own, and an actor for it that can do everything an actor may do, well or badly."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import anyio

from ayllu.bus.context import CallContext, current_call
from ayllu.schemas import EngineDead, NotFound, Reply, Wire, webmethod


class CountRequest(Wire, frozen=True):
    """Count to a number."""

    to: int
    size: int = 0
    fail_at: int | None = None
    stream: bool = False


class Number(Reply, frozen=True):
    """One number, with some padding."""

    value: int
    padding: str = ""


class Numbers(Reply, frozen=True):
    """All numbers."""

    values: list[int]


def assemble(numbers: Sequence[Number]) -> Numbers:
    """Return all numbers."""
    return Numbers(values=[number.value for number in numbers])


class Context(Reply, frozen=True):
    """What a call brought along."""

    seconds: float
    traceparent: str


class Shapes(Protocol):
    """Every shape that an operation may have."""

    @webmethod(route="/shapes/shout")
    async def shout(self, text: str, times: int = 1) -> str:
        """Return a text in capitals."""
        ...

    @webmethod(route="/shapes/count")
    async def count(self, request: CountRequest) -> Numbers:
        """Count, and return all numbers."""
        ...

    @webmethod(route="/shapes/count", assemble=assemble)
    def stream_count(self, request: CountRequest) -> AsyncIterator[Number]:
        """Count."""
        ...

    @webmethod(route="/shapes/list")
    def list(self, request: CountRequest) -> AsyncIterator[Number]:
        """List numbers."""
        ...

    @webmethod(route="/shapes/hang")
    async def hang(self) -> None:
        """Never answer."""
        ...

    @webmethod(route="/shapes/stall")
    def stall(self, after: int) -> AsyncIterator[int]:
        """Send some numbers, and then nothing."""
        ...

    @webmethod(route="/shapes/fail")
    async def fail(self, how: str) -> None:
        """Fail."""
        ...

    @webmethod(route="/shapes/context")
    async def context(self) -> Context:
        """Return the seconds that are left, and the trace."""
        ...


class ShapesActor(Shapes):
    """Does what its Protocol says, and remembers what became of it.

    Attributes:
        running: how many methods are at work.
        started: is set when one begins; replaced by a test that waits for the next.
        ended: how many ended, in whatever way.
    """

    service_name = "shapes"

    def __init__(self) -> None:
        self.running = 0
        self.ended = 0
        self.started = anyio.Event()
        self.idle = anyio.Event()
        self.produced = 0

    def _begin(self) -> None:
        self.running += 1
        self.idle = anyio.Event()
        self.started.set()

    def _end(self) -> None:
        self.running -= 1
        self.ended += 1
        if not self.running:
            self.idle.set()

    async def shout(self, text: str, times: int = 1) -> str:
        return text.upper() * times

    async def count(self, request: CountRequest) -> Numbers:
        return assemble([number async for number in self.stream_count(request)])

    async def stream_count(self, request: CountRequest) -> AsyncIterator[Number]:
        self._begin()
        try:
            for value in range(request.to):
                if value == request.fail_at:
                    raise NotFound(f"there is no {value}")
                yield Number(value=value, padding="x" * request.size)
                self.produced += 1
        finally:
            self._end()

    async def list(self, request: CountRequest) -> AsyncIterator[Number]:
        async for number in self.stream_count(request):
            yield number

    async def hang(self) -> None:
        self._begin()
        try:
            await anyio.sleep_forever()
        finally:
            self._end()

    async def stall(self, after: int) -> AsyncIterator[int]:
        self._begin()
        try:
            for value in range(after):
                yield value
            await anyio.sleep_forever()
        finally:
            self._end()

    async def fail(self, how: str) -> None:
        if how == "known":
            raise NotFound("no such thing", details={"how": how})
        if how == "long":
            raise NotFound("x" * 2_000_000, details={"quoted": "x" * 2_000_000})
        if how == "timeout":
            raise TimeoutError
        if how == "dead":
            raise EngineDead("the engine died")
        raise KeyError("a secret of the server")

    async def context(self) -> Context:
        call = current_call.get()
        assert isinstance(call, CallContext)
        return Context(seconds=call.deadline - anyio.current_time(), traceparent=call.traceparent)
