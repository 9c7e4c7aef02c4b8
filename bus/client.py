"""Typed clients: a Protocol in, an object that implements it over the bus out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar, cast

from typing_extensions import TypeForm

from ..schemas import (
    AylluError,
    BusError,
    ModelNotFound,
    Operation,
    Unavailable,
    decode,
    operations_of,
)
from ..schemas.webmethod import encode_input
from .bus import Bus
from .calls import Call
from .subjects import operation_subject

P = TypeVar("P")
E = TypeVar("E")

INFERENCE_SERVICE = "inference"
"""The service whose instances tell in their metadata which models they serve."""


async def served_models(bus: Bus) -> list[dict[str, Any]]:
    """Return the models that live actors serve, as they describe them, one entry an actor and model."""
    services = await bus.transport.discover(INFERENCE_SERVICE)
    return [model for service in services for model in json.loads(service.metadata["models"])]


async def open_call(
    bus: Bus,
    operation: Operation,
    payload: bytes,
    *,
    model: str | None,
    timeout: float | None = None,
    traceparent: str | None = None,
) -> Call:
    """Start a call with a payload that is known to be right; the raw form of `client`.

    Raises:
        BusError: the bus is gone.
        DeadlineExceeded: there is no time left.
    """

    async def explain_absence() -> AylluError:
        if model is None:
            return Unavailable(f"no live actor serves {operation.base_name} at present")
        models = await served_models(bus)
        if not models:
            return Unavailable("no live actor serves any model at present")
        names = sorted({name for m in models for name in (m["name"], *m.get("aliases", []))})
        return ModelNotFound(
            f"no live actor serves the model {model!r}; served are {', '.join(names)}",
            details={"model": model, "served": names},
        )

    return await bus.calls.open(
        operation_subject(operation, model),
        payload,
        timeout=timeout or operation.timeout,
        traceparent=traceparent,
        explain_absence=explain_absence,
    )


class EventStream(Generic[E]):
    """The events of a streamed call, typed.

    Iterate it to the end, or ``await stream.aclose()`` (a dropped one closes itself): what has not ended is cancelled.
    After the end, ``result`` is the assembled reply, as JSON text, of operations that have one.
    """

    def __init__(self, start: Callable[[], Any], type_: type[E]) -> None:
        self._start = start
        self._type = type_
        self._call: Call | None = None
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
                self._waiting = (await self._call.take())[::-1]
        except BaseException:
            await self.aclose()
            raise
        if not self._waiting:
            assert self._call is not None
            self.result = self._call.result
            self._done = True
            raise StopAsyncIteration
        return decode(self._waiting.pop(), self._type)

    async def aclose(self) -> None:
        """Cancel what has not ended."""
        self._done = True
        if self._call is not None:
            self._call.close()

    def __del__(self) -> None:
        if self._call is not None and not self._done:
            self._call.close()


class _Client:
    """An object with a method for each operation of a Protocol."""

    def __init__(self, bus: Bus, protocol: type, timeout: float | None) -> None:
        for operation in operations_of(protocol):
            caller = _unary if operation.kind == "unary" else _streamed
            setattr(self, operation.method, caller(bus, operation, timeout))


def _start(
    bus: Bus,
    operation: Operation,
    timeout: float | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Callable[[], Any]:
    value = operation.input_from(args, kwargs)
    payload = encode_input(operation, value)
    model = operation.model_of(value)
    return lambda: open_call(bus, operation, payload, model=model, timeout=timeout)


def _unary(bus: Bus, operation: Operation, timeout: float | None) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        async with await _start(bus, operation, timeout, args, kwargs)() as running:
            replies = await running.take()
            while more := await running.take():
                replies += more
        if len(replies) != 1:
            raise BusError(f"{operation.name} was answered by {len(replies)} replies, not one")
        return None if operation.output is None else decode(replies[0], operation.output)

    return call


def _streamed(bus: Bus, operation: Operation, timeout: float | None) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        return EventStream(_start(bus, operation, timeout, args, kwargs), operation.output)

    return call


def client(protocol: TypeForm[P], bus: Bus, *, timeout: float | None = None) -> P:
    """Return an object that implements a Protocol by calling its actors over the bus.

    Args:
        protocol: a Protocol with `@webmethod`s.
        bus: the bus.
        timeout: the deadline of each call in seconds; by default each operation's own.

    Its methods raise `AylluError`s: what the actor raised, and `Unavailable`, `ModelNotFound`, `ActorLost`,
    `DeadlineExceeded` and `BusError` for what happens on the way. Cancelling a method, or leaving a stream, cancels the
    work. The streams that it returns are `EventStream`s.
    """
    return cast(P, _Client(bus, cast(type, protocol), timeout))
