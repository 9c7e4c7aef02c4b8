"""Typed clients: a Protocol in, an object that implements it over the bus out."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar, cast

import anyio
import msgspec
from typing_extensions import TypeForm

from ..schemas import (
    AylluError,
    InvalidRequest,
    Model,
    ModelNotFound,
    NotFound,
    Operation,
    ShieldOffer,
    ToolOffer,
    Unavailable,
    decode,
    operations_of,
)
from ..schemas.proxy import add_methods
from .bus import Bus
from .calls import Call
from .kept import is_kept
from .subjects import operation_subject
from .transport import ServiceInfo

log = logging.getLogger(__name__)

P = TypeVar("P")
T = TypeVar("T")

TOOLS = "tools"
"""The key of a service's metadata under which its tools stand."""
SHIELDS = "shields"
"""The same of its shields."""
INFERENCE_SERVICE = "inference"
EMBEDDING_SERVICE = "embedding"
REWARD_SERVICE = "rewards"
"""The services whose instances tell in their metadata which models they serve."""


KINDS = {"embeddings": "embedding", "reward_scoring.score": "reward"}
"""The kind of models that operations are routed to which are not answered by language models."""


async def served_models(bus: Bus) -> list[Model]:
    """Return the models that live actors serve, as they describe them, one entry an actor and model."""
    services: list[ServiceInfo] = []

    async def discover(name: str) -> None:
        services.extend(await bus.transport.discover(name))

    try:
        async with anyio.create_task_group() as tasks:
            for name in (INFERENCE_SERVICE, EMBEDDING_SERVICE, REWARD_SERVICE):
                tasks.start_soon(discover, name)
    except* AylluError as group:
        raise group.exceptions[0] from None
    models: list[Model] = []
    for service in sorted(services, key=lambda service: service.id):
        try:
            models += decode(service.metadata.get("models", ""), list[Model])
        except InvalidRequest as error:
            # Anybody on the bus may announce a service of this name.
            log.warning("the service %s describes its models wrongly: %s", service.id, error)
    return models


async def offered_tools(bus: Bus) -> dict[str, ToolOffer]:
    """Return the tools that live actors offer, by name."""
    return {offer.name: offer for offer in await _offers(bus, TOOLS, list[ToolOffer])}


async def offered_shields(bus: Bus) -> dict[str, ShieldOffer]:
    """Return the shields that live actors run, by name."""
    return {offer.name: offer for offer in await _offers(bus, SHIELDS, list[ShieldOffer])}


async def _offers(bus: Bus, key: str, type_: type[list[T]]) -> list[T]:
    """Return what all services say of themselves under a key of their metadata."""
    found: list[T] = []
    for service in await bus.transport.discover(""):
        try:
            found += decode(service.metadata.get(key, "[]"), type_)
        except InvalidRequest as error:
            log.warning("the service %s describes its %s wrongly: %s", service.id, key, error)
    return found


NAMED: Mapping[str, tuple[str, Callable[[Bus], Awaitable[Mapping[str, object]]]]] = {
    "tools.call": ("tool", offered_tools),
    "safety.check": ("shield", offered_shields),
}
"""The operations that are routed by something else than a model: what that is called, and which of it there are."""


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
        if operation.base_name in NAMED:
            what, offered = NAMED[operation.base_name]
            names = sorted(await offered(bus))
            listed = ", ".join(names) or "none"
            return NotFound(
                f"no live actor offers the {what} {model!r}; offered are: {listed}",
                details={"offered": names},
            )
        kind = KINDS.get(operation.base_name, "language")
        models = [known for known in await served_models(bus) if known.kind == kind]
        if not models:
            return Unavailable(f"no live actor serves any {kind} model at present")
        names = sorted({name for known in models for name in (known.name, *known.aliases)})
        # Its actor is just coming up, or coming back after the bus was away or its engine died.
        if model in names or await is_kept(bus, model, kind):
            return Unavailable(f"the model {model!r} is not ready yet")
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


class _Client:
    """An object with a method for each operation of a Protocol."""


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

    async def carry(operation: Operation, payload: bytes, value: msgspec.Struct) -> Call:
        return await open_call(
            bus, operation, payload, model=operation.model_of(value), timeout=timeout
        )

    made = _Client()
    add_methods(made, operations_of(cast(type, protocol)), carry)
    return cast(P, made)
