"""Calls that the gateway forwards: what actors send is checked before it is spliced, and decoded only to be translated."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from ..bus.bus import Bus
from ..bus.calls import Call
from ..bus.client import open_call
from ..bus.context import new_traceparent
from ..schemas import AylluError, BusError, Operation
from .metrics import Metrics
from .observing import CallRecord

T = TypeVar("T")

_RAW_VALUES = msgspec.json.Decoder(list[msgspec.Raw])


def checked(events: list[bytes]) -> list[bytes]:
    """Return what an actor sent, each event as JSON text of one line; anybody on the bus may be an actor.

    They are read together, as the elements of one array, which costs half of reading each: what comes back are the values
    of that array, so that nothing but JSON is spliced into a frame, whatever was sent.

    Raises:
        BusError: they are not JSON, or not one value each.
    """
    text = b",".join(events)
    try:
        values = _RAW_VALUES.decode(b"[%b]" % text)
        if not text.isascii():
            text.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BusError("the actor sent what is not JSON", retryable=False) from error
    if len(values) != len(events):
        raise BusError("the actor sent what is not one JSON value", retryable=False)
    if b"\n" in text or b"\r" in text:
        # Line breaks stand between JSON's tokens only: in its texts they are escaped.
        return [bytes(value).replace(b"\n", b" ").replace(b"\r", b" ") for value in values]
    return [bytes(value) for value in values]


def decoded(events: list[bytes], decoder: msgspec.json.Decoder[list[T]]) -> list[T]:
    """Return what an actor sent as values, read together as the elements of one array.

    Raises:
        BusError: they are not what the decoder reads, or not one value each.
    """
    try:
        values = decoder.decode(b"[%b]" % b",".join(events))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BusError("the actor sent what cannot be read", retryable=False) from error
    if len(values) != len(events):
        raise BusError("the actor sent what is not one JSON value", retryable=False)
    return values


class ForwardedCall:
    """A call whose events and result are `checked`, and whose end is noted (a `RunningCall`)."""

    def __init__(self, call: Call, record: CallRecord) -> None:
        self._call = call
        self._record = record

    @property
    def result(self) -> bytes | None:
        """The assembled reply of a stream, once `take` has returned nothing."""
        result = self._call.result
        return None if result is None else checked([result])[0]

    async def take(self) -> list[bytes]:
        """Return all events that wait, at least one; nothing when the call has ended well. Cancel-safe.

        Raises:
            AylluError: the call ended in an error, or the actor sent what is not JSON.
        """
        return await self._take(checked)

    async def take_as(self, decoder: msgspec.json.Decoder[list[T]]) -> list[T]:
        """Return all events that wait as values, as `take` does as bytes.

        Raises:
            AylluError: the call ended in an error, or the actor sent what the decoder does not read.
        """
        return await self._take(lambda events: decoded(events, decoder))

    async def _take(self, read: Callable[[list[bytes]], list[T]]) -> list[T]:
        try:
            events = read(await self._call.take())
        except AylluError as error:
            self._record.failed(error)
            raise
        if events:
            self._record.took(len(events))
        else:
            self._record.succeeded()
        return events

    def close(self) -> None:
        """Leave the call; what has not ended is cancelled. Never waits."""
        self._call.close()
        self._record.left()


async def forward(
    bus: Bus,
    operation: Operation,
    payload: bytes,
    *,
    model: str | None,
    timeout: float,
    metrics: Metrics,
    traceparent: str | None = None,
) -> ForwardedCall:
    """Start a call with a payload that was checked against the operation; see `open_call`."""
    traceparent = traceparent or new_traceparent()
    record = CallRecord(metrics, operation.name, traceparent)
    try:
        call = await open_call(
            bus, operation, payload, model=model, timeout=timeout, traceparent=traceparent
        )
    except AylluError as error:
        record.failed(error)
        raise
    except BaseException:
        record.left()
        raise
    return ForwardedCall(call, record)
