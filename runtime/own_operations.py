"""The operations of own actors, as live actors announce them: what a gateway serves beside the table.

Anybody on the bus may announce operations, so what is kept of them is bounded, and nothing of it can stand in the place of one
of ours (`problem_with`). Whoever calls names that nobody has costs the bus no more than one question a second.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import anyio

from ..bus.bus import Bus
from ..bus.transport import ServiceInfo
from ..schemas import (
    OWN_OPERATIONS,
    AylluError,
    InvalidRequest,
    Operation,
    OwnOperation,
    Unavailable,
    decode,
    operation_from,
)
from ..schemas.own_operations import problem_with, taken_by
from ..schemas.webmethod import SUBJECT_PREFIX
from .health import Fresh

log = logging.getLogger(__name__)

MOST_OPERATIONS = 100
"""How many are known at once; further ones are not served."""
MOST_BYTES = 512 << 10
"""How long the description of one actor may be."""
MOST_BYTES_AT_ONCE = 4 << 20
"""How much of all descriptions is read."""
MOST_READ = 100 * MOST_OPERATIONS
"""How many operations of all descriptions are looked at: that takes a tenth of a second, in which the gateway does nothing else."""
KEEP_SECONDS = 600.0
"""For how long an operation is known after its last actor went: calls are told that it is not there at present."""
REFRESH_SECONDS = 5.0
"""After so long, what is known is asked for again while it is used."""
ASK_SECONDS = 2.0


@dataclass(slots=True)
class _Known:
    own: OwnOperation
    operation: Operation
    seen: float


class OwnTable:
    """Which own operations there are, out of what services announce. Pure: no I/O, no clock.

    Args:
        ours: the operations that no other may stand in place of.
    """

    def __init__(self, ours: Mapping[str, Operation]) -> None:
        self._taken = taken_by(ours)
        self._known: dict[str, _Known] = {}
        self._refused: set[str] = set()

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def get(self, name: str) -> tuple[OwnOperation, Operation] | None:
        """Return an operation as it was announced, and as it is served."""
        known = self._known.get(name)
        return None if known is None else (known.own, known.operation)

    def may_have(self, name: str) -> bool:
        """Tell whether there could be an own operation of this name."""
        return not problem_with(name, "Own", self._taken)

    def take(self, services: Sequence[ServiceInfo], now: float) -> None:
        """Take what all live services say of themselves."""
        live: dict[str, list[OwnOperation]] = {}
        left, read = MOST_BYTES_AT_ONCE, MOST_READ
        for service in services:
            text = service.metadata.get(OWN_OPERATIONS, "")
            if text and read > 0 and (left := left - len(text)) >= 0:
                found = self._read(service, text)[:MOST_OPERATIONS]
                read -= len(found)
                for own in self._served(service, found):
                    live.setdefault(own.name, []).append(own)
        self._known = {
            name: known
            for name, known in self._known.items()
            if name in live or now - known.seen <= KEEP_SECONDS
        }
        for name, described in live.items():
            self._add(name, described, now, live)

    def _read(self, service: ServiceInfo, text: str) -> list[OwnOperation]:
        try:
            if len(text) > MOST_BYTES:
                raise InvalidRequest(f"{len(text)} bytes are too many")
            return decode(text, list[OwnOperation])
        except InvalidRequest as error:
            self._complain(service.id, f"describes its operations wrongly: {error.message}")
            return []

    def _served(
        self, service: ServiceInfo, found: Sequence[OwnOperation]
    ) -> Iterator[OwnOperation]:
        """Yield those operations of a service that a gateway may serve."""
        subjects = {endpoint.subject for endpoint in service.endpoints}
        for own in found:
            problem = problem_with(own.name, own.api, self._taken)
            if not problem and SUBJECT_PREFIX + own.name not in subjects:
                problem = f"{own.name} is none of its endpoints"
            if problem:
                self._complain(service.id, f"has an operation that is not served: {problem}")
            else:
                yield own

    def _add(
        self,
        name: str,
        described: Sequence[OwnOperation],
        now: float,
        live: Mapping[str, object],
    ) -> None:
        known = self._known.get(name)
        if any(one != described[0] for one in described):
            self._complain(name, "is described by several actors in different ways")
            if known is None and len({one.api for one in described}) > 1:
                return  # Which scope its callers need is not for the first one to say.
        if known is None and len(self._known) >= MOST_OPERATIONS:
            gone = [one for one in self._known if one not in live]
            if not gone:
                self._complain(name, f"is not served: there are {MOST_OPERATIONS} operations")
                return
            del self._known[min(gone, key=lambda one: self._known[one].seen)]
        if known is not None:
            # An actor may be missed, by accident or by what others flood the bus with: another one changes no scope soon.
            same = [one for one in described if one.api == known.own.api]
            if not same and now - known.seen <= KEEP_SECONDS:
                return
            described = same or described
        # What is known stays as long as one of its actors lives: another one cannot change what a call means.
        own = known.own if known is not None and known.own in described else described[0]
        if known is None or known.own != own:
            known = self._known[name] = _Known(own, operation_from(own), now)
        known.seen = now

    def _complain(self, who: str, what: str) -> None:
        """Log, once; by bounded means."""
        if who not in self._refused and len(self._refused) < 10 * MOST_OPERATIONS:
            self._refused.add(who)
            log.warning("%r %s", who[:160], what[:400])


class OwnOperations:
    """The own operations on a bus. What is known is returned at once, and asked for again in the background (`run`).

    Args:
        bus: the bus.
        ours: the operations that no other may stand in place of.
        refresh: after how many seconds what is used is asked for again.
    """

    def __init__(
        self, bus: Bus, ours: Mapping[str, Operation], *, refresh: float = REFRESH_SECONDS
    ) -> None:
        self._bus = bus
        self._refresh = refresh
        self._table = OwnTable(ours)
        self._asked = Fresh(self._ask)
        self._asked_at = 0.0
        self._stale = anyio.Event()
        self._error: AylluError | None = None

    def get(self, name: str) -> tuple[OwnOperation, Operation] | None:
        """Return an operation that is known, as it was announced and as it is served."""
        found = self._table.get(name)
        if found is not None and anyio.current_time() - self._asked_at > self._refresh:
            self._stale.set()
        return found

    def may_have(self, name: str) -> bool:
        """Tell whether it is worth to look for a name."""
        return self._table.may_have(name)

    async def find(self, name: str) -> tuple[OwnOperation, Operation] | None:
        """Return an operation; what is not known is looked for, with others and at most once a second.

        Raises:
            Unavailable: the bus does not say.
        """
        found = self.get(name)
        if found is None and self.may_have(name):
            await self._asked.get()
            found = self._table.get(name)
            if found is None and self._error is not None:
                raise self._error
        return found

    async def run(self) -> None:
        """Ask again for what is used, until cancelled."""
        while True:
            await self._stale.wait()
            self._stale = anyio.Event()
            await self._asked.get()

    async def _ask(self) -> None:
        services: list[ServiceInfo] | None = None
        with anyio.move_on_after(ASK_SECONDS):
            try:
                services = await self._bus.transport.discover("")
            except AylluError as error:
                log.warning("own actors could not be asked: %s", error.message)
        self._asked_at = anyio.current_time()
        if services is None:
            self._error = Unavailable("the bus does not say at present which operations there are")
        else:
            self._error = None
            self._table.take(services, self._asked_at)


class AllOperations(Mapping[str, Operation]):
    """The operations of the table, and after them those of own actors that are known."""

    def __init__(self, ours: Mapping[str, Operation], own: OwnOperations) -> None:
        self._ours = ours
        self._own = own

    def __getitem__(self, name: str) -> Operation:
        found = self._ours.get(name)
        if found is not None:
            return found
        own = self._own.get(name)
        if own is None:
            raise KeyError(name)
        return own[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ours)

    def __len__(self) -> int:
        return len(self._ours)
