"""What the bus needs from whatever carries it: publish, subscribe, announce. Two implementations, one contract suite.

Delivery is at most once and in the order of publishing per publisher. What must survive is in `ayllu.bus.durable`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec


class Message(msgspec.Struct, frozen=True, gc=False):
    """A message as it was received.

    Attributes:
        subject: where it was published.
        payload: its bytes.
        reply: where the sender listens for answers.
        headers: its headers; None where there are none (which is faster).
        no_responders: the bus's own answer to a publish with ``reply`` on a subject that nobody listens to.
    """

    subject: str
    payload: bytes
    reply: str | None = None
    headers: Mapping[str, str] | None = None
    no_responders: bool = False


Handler = Callable[[Message], None]
"""Takes a message. It is called on the event loop, returns at once and does not raise (what it raises is logged)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One subject of a service; those who share a queue group share the requests."""

    name: str
    subject: str
    queue: str


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """A service as others discover it (on NATS, through ``nats.micro``).

    Attributes:
        name: what it is, ``[A-Za-z0-9_-]+``; all instances share it.
        version: semantic version.
        description: one line for people.
        metadata: facts for other programs, text only.
        endpoints: its subjects.
        id: the instance; filled in by the transport.
        stats: returns what the instance tells about its work, JSON values only; asked rarely, and it returns at once. On
            NATS it stands with the endpoints, so a service without any tells nothing.
    """

    name: str
    version: str
    description: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    endpoints: Sequence[Endpoint] = ()
    id: str = ""
    stats: Callable[[], Mapping[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class ServiceStats:
    """What one instance of a service told about its work.

    Attributes:
        name: what it is.
        id: the instance; another one after each restart.
        data: what `ServiceInfo.stats` returned.
    """

    name: str
    id: str
    data: Mapping[str, Any]


class Transport(Protocol):
    """Moves messages between processes, or within one."""

    @property
    def max_payload(self) -> int:
        """The largest payload of one message, in bytes."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the bus is there at this moment."""
        ...

    @property
    def reconnects(self) -> int:
        """How often the bus was lost and found again."""
        ...

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        reply: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a message. With ``reply``, an absent listener is told there by a message with ``no_responders``.

        Raises:
            BusError: the bus is gone and its send buffer is full, or the payload is too large.
        """
        ...

    def subscribe(
        self, subject: str, handler: Handler, *, queue: str | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Hand every message on a subject (``*`` and ``>`` are wildcards) to a handler, live, at most once.

        On entering, the subscription is known to the bus. Of a queue group, one member gets each message.
        """
        ...

    def announce(
        self, service: ServiceInfo, handler: Handler
    ) -> AbstractAsyncContextManager[ServiceInfo]:
        """Serve the endpoints of a service with one handler, and let others discover it."""
        ...

    async def discover(self, name: str, *, wait: float = 0.25) -> list[ServiceInfo]:
        """Return the live instances of a service, or of all (""), that answer within ``wait`` seconds, by their ids."""
        ...

    async def stats(self, name: str, *, wait: float = 0.25) -> list[ServiceStats]:
        """Return what the live instances of a service, or of all (""), tell about their work, ordered by their ids."""
        ...

    def inbox(self) -> str:
        """Return a new subject that nobody else uses."""
        ...
