"""Typed proxies: an object with the methods of a Protocol, over anything that can carry a call.

The bus client and the websocket client are the same proxy over different carriers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from .errors import BusError
from .webmethod import Operation, encode_input
from .wire import decode

E = TypeVar("E")


class RunningCall(Protocol):
    """A call that was sent."""

    @property
    def result(self) -> bytes | None:
        """The assembled reply of a stream, once it has ended."""
        ...

    async def take(self) -> list[bytes]:
        """Return all events that wait, at least one; nothing when the call has ended well.

        Raises:
            AylluError: the call ended in an error.
        """
        ...

    def close(self) -> None:
        """Leave the call; what has not ended is cancelled. Never waits."""
        ...


Carrier = Callable[[Operation, bytes, msgspec.Struct], Awaitable[RunningCall]]
"""Sends a call: the operation, the payload, and the value that the payload encodes."""


class EventStream(Generic[E]):
    """The events of a streamed call, typed.

    Iterate it to the end, or ``await stream.aclose()`` (a dropped one closes itself): what has not ended is cancelled.
    After the end, ``result`` is the assembled reply, as JSON text, of operations that have one.
    """

    def __init__(self, start: Callable[[], Awaitable[RunningCall]], type_: type[E]) -> None:
        self._start = start
        self._type = type_
        self._call: RunningCall | None = None
        self._waiting: list[bytes] = []
        self._done = False
        self.result: bytes | None = None

    def __aiter__(self) -> EventStream[E]:
        return self

    async def __anext__(self) -> E:
        if self._done:
            raise StopAsyncIteration
        try:
            if not self._waiting:
                if self._call is None:
                    self._call = await self._start()
                # Reversed, so that events are popped from the end.
                self._waiting = (await self._call.take())[::-1]
            if not self._waiting:
                self.result = self._call.result if self._call else None
                self._done = True
                raise StopAsyncIteration
            return decode(self._waiting.pop(), self._type)
        except StopAsyncIteration:
            raise
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Cancel what has not ended."""
        if not self._done and self._call is not None:
            self._call.close()
        self._done = True

    def __del__(self) -> None:
        if self._call is not None and not self._done:
            self._call.close()


async def single_reply(running: RunningCall) -> bytes:
    """Read a unary call to its end, and return its one reply.

    Raises:
        AylluError: the call ended in an error, or in another number of replies.
    """
    replies = await running.take()
    while more := await running.take():
        replies += more
    if len(replies) != 1:
        raise BusError(f"the call was answered by {len(replies)} replies, not one")
    return replies[0]


def unary_method(operation: Operation, carry: Carrier) -> Callable[..., Awaitable[Any]]:
    """Return the Protocol's method for an operation with one reply."""

    async def call(*args: Any, **kwargs: Any) -> Any:
        value = operation.input_from(args, kwargs)
        running = await carry(operation, encode_input(operation, value), value)
        try:
            reply = await single_reply(running)
        finally:
            running.close()
        return None if operation.output is None else decode(reply, operation.output)

    return call


def streamed_method(operation: Operation, carry: Carrier) -> Callable[..., AsyncIterator[Any]]:
    """Return the Protocol's method for an operation that streams events or items."""

    def call(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        value = operation.input_from(args, kwargs)
        payload = encode_input(operation, value)
        return EventStream(lambda: carry(operation, payload, value), operation.output)

    return call


def add_methods(target: object, operations: tuple[Operation, ...], carry: Carrier) -> None:
    """Give an object the Protocol's methods for operations."""
    for operation in operations:
        make = unary_method if operation.kind == "unary" else streamed_method
        setattr(target, operation.method, make(operation, carry))
