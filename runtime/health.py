"""``/livez`` and ``/readyz``: whether the process answers, and whether clients can be served.

Both are for load balancers and container engines, which have no credentials: they tell counts and no names. Whoever asks
often costs the bus no more than one question a second.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from ..actors.models import ModelsActor
from ..bus.bus import Bus
from ..bus.client import served_models
from ..schemas import AylluError, Wire, encode
from ..schemas.tasks import first_of

log = logging.getLogger(__name__)

T = TypeVar("T")

FRESH_SECONDS = 1.0
CHECK_SECONDS = 2.0
"""How long the bus may take to answer before it counts as gone."""


class Fresh(Generic[T]):
    """Something that is asked for at most once a second, and by one at a time."""

    def __init__(self, ask: Callable[[], Awaitable[T]], *, seconds: float = FRESH_SECONDS) -> None:
        self._ask = ask
        self._seconds = seconds
        self._lock = anyio.Lock()
        self._known: tuple[float, T] | None = None

    async def get(self) -> T:
        """Return it, asked for just now or at most so many seconds ago."""
        async with self._lock:
            now = anyio.current_time()
            if self._known is None or now - self._known[0] > self._seconds:
                self._known = (now, await self._ask())
            return self._known[1]


class Check(Wire, frozen=True, omit_defaults=True):
    """One thing that must hold.

    Attributes:
        ok: whether it holds.
        found: how many there are, of what is counted.
        why: what is wrong.
    """

    ok: bool
    found: int | None = None
    why: str = ""


class Readiness(Wire, frozen=True):
    """The answer of ``/readyz``.

    Attributes:
        ready: whether all checks hold.
        checks: ``bus``, ``actors`` and ``models``.
    """

    ready: bool
    checks: dict[str, Check]


def _some(count: int, what: str) -> Check:
    return Check(True, count) if count else Check(False, 0, f"no live actor {what}")


async def check_readiness(bus: Bus) -> Readiness:
    """Return whether clients can be served: the bus answers, and at least one model is served. Never raises."""
    unknown = Check(False, why="not known without the bus")
    checks = {"bus": Check(False, why="the bus is gone"), "actors": unknown, "models": unknown}
    if bus.transport.connected:
        try:
            with anyio.fail_after(CHECK_SECONDS):
                checks = await _ask(bus)
        except (AylluError, TimeoutError) as error:
            log.warning("not ready: the bus does not answer: %r", error)
            checks["bus"] = Check(False, why="the bus does not answer")
    return Readiness(all(check.ok for check in checks.values()), checks)


async def _ask(bus: Bus) -> dict[str, Check]:
    listing = models = actors = 0

    async def ask_listing() -> None:
        nonlocal listing
        listing = len(await bus.transport.discover(ModelsActor.service_name))

    async def ask_models() -> None:
        nonlocal models, actors
        served = [model for model in await served_models(bus) if model.kind == "language"]
        models, actors = len({model.name for model in served}), len(served)

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask_listing)
            tasks.start_soon(ask_models)
    except* AylluError as group:
        raise first_of(group) from None
    return {
        "bus": Check(True),
        "actors": _some(listing and listing + actors, "lists models"),
        "models": _some(models, "serves a model"),
    }


class HealthPages:
    """Serves ``/livez`` and ``/readyz``."""

    def __init__(self, bus: Bus) -> None:
        self._readiness = Fresh(lambda: check_readiness(bus))

    def routes(self) -> list[BaseRoute]:
        """Return the routes."""
        return [Route("/livez", self.live), Route("/readyz", self.ready)]

    async def live(self, _: Request) -> Response:
        """Answer: that is all there is to it."""
        return Response(b'{"live":true}', media_type="application/json")

    async def ready(self, _: Request) -> Response:
        """Answer 200, or 503 and what is not ready."""
        readiness = await self._readiness.get()
        return Response(
            encode(readiness), 200 if readiness.ready else 503, media_type="application/json"
        )
