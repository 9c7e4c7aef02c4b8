"""The slots of an actor: an actor that has the attribute ``slots`` takes no more requests than it can run.

`ayllu.bus.service` keeps the others waiting, and shares them with other actors that serve the same (`ayllu.bus.sharing`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar

import anyio

from .sharing import Sharing

_request: ContextVar[tuple[Slots, str] | None] = ContextVar("ayllu_slots_request", default=None)


class Slots:
    """How many requests an actor runs at once, and how many may wait. One actor, served once, has it.

    Args:
        capacity: how many run at once.
        waiting: how many may wait; the next one is answered with `Overloaded`.

    Attributes:
        sharing: what is decided.
        act: does what is decided; whoever serves the actor sets it.
    """

    def __init__(self, capacity: int, *, waiting: int) -> None:
        self.sharing = Sharing(capacity, waiting)
        self.act: Callable[[], None] | None = None
        self._items: dict[str, anyio.Event] = {}
        self._next = 0

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self.sharing.waiting

    @asynccontextmanager
    async def item(self) -> AsyncIterator[None]:
        """Hold a slot for an item of the request that is being worked on, once there is one for it.

        A request has one slot of its own for its items; further ones are taken only while no request wants them. Without a
        service around the actor, there is nothing to wait for.
        """
        request = _request.get()
        if request is None or request[0] is not self or self.act is None:
            yield
            return
        self._next += 1
        name = f"item-{self._next}"
        started = self._items[name] = anyio.Event()
        self.sharing.want(name, request[1], anyio.current_time())
        self.act()
        try:
            await started.wait()
            yield
        finally:
            del self._items[name]
            self.sharing.leave(name, anyio.current_time())
            self.act()

    def begin_item(self, name: str) -> bool:
        """Let an item begin; false when the name is none of an item's."""
        started = self._items.get(name)
        if started is not None:
            started.set()
        return started is not None

    def work_on(self, request: str) -> None:
        """Tell that this task, and all that it starts, works on a request."""
        _request.set((self, request))
