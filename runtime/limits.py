"""How much a caller may do: calls in a second, and calls at once. Pure: the clock is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..schemas import Overloaded

PURGE_AT = 10_000
"""From how many remembered callers on those are forgotten whose calls are long past."""


class CallRate:
    """How many calls a second each caller may start; a second's worth (at least one) may come at once.

    It is the generic cell rate algorithm: of each caller, one point in time is remembered, that at which its calls so far
    are paid off.

    Args:
        per_second: calls in a second.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, per_second: float, clock: Callable[[], float]) -> None:
        self._interval = 1 / per_second
        self._ahead = max(1.0, self._interval)
        self._clock = clock
        self._paid: dict[str, float] = {}

    def take(self, caller: str) -> None:
        """Count a call.

        Raises:
            Overloaded: it comes too early; ``details["retry_after"]`` says by how many seconds.
        """
        now = self._clock()
        paid = max(self._paid.get(caller, now), now) + self._interval
        wait = paid - now - self._ahead
        if wait > 1e-9:
            raise Overloaded("too many calls in a second", details={"retry_after": round(wait, 3)})
        if len(self._paid) >= PURGE_AT:
            self._paid = {name: until for name, until in self._paid.items() if until > now}
        self._paid[caller] = paid


class CallSlots:
    """How many calls of each caller may run at once, over all its connections."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: Counter[str] = Counter()

    def running(self, caller: str) -> int:
        """Return how many calls of a caller run."""
        return self._running[caller]

    @contextmanager
    def hold(self, caller: str) -> Iterator[None]:
        """Count a call as running until the end of the block.

        Raises:
            Overloaded: too many run already.
        """
        if self._running[caller] >= self._most:
            raise Overloaded(f"{self._most} calls of this caller run already")
        self._running[caller] += 1
        try:
            yield
        finally:
            self._running[caller] -= 1
            if not self._running[caller]:
                del self._running[caller]
