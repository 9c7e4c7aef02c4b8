"""What the gateway notes of each call: a line in the log at its end, and the numbers of `Metrics`."""

from __future__ import annotations

import logging
import time

from ..bus.context import trace_id_of
from ..schemas import AylluError
from .logs import CALL, forwarded_call
from .metrics import CANCELLED, OK, Metrics

log = logging.getLogger("ayllu.calls")


class CallRecord:
    """One call, from its start to the first of its ends that is noted."""

    __slots__ = ("_began", "_ended", "_events", "_fields", "_first", "_metrics")

    def __init__(self, metrics: Metrics, operation: str, traceparent: str) -> None:
        self._metrics = metrics
        self._fields = {"request_id": trace_id_of(traceparent), "operation": operation}
        # Not the loop's clock: uvloop's moves in steps of a millisecond.
        self._began = time.perf_counter()
        self._first: float | None = None
        self._events = 0
        self._ended = False
        metrics.in_flight.inc()
        # The task that forwards the call is its own: what it logs belongs to this call.
        forwarded_call.set(self._fields)

    def took(self, count: int) -> None:
        """Note events that came."""
        if not self._events:
            self._first = time.perf_counter() - self._began
        self._events += count

    def failed(self, error: AylluError) -> None:
        """Note that it ended in an error."""
        self._end(error.info.code)

    def succeeded(self) -> None:
        """Note that it ended well."""
        self._end(OK)

    def left(self) -> None:
        """Note that nobody reads it any more; if it has not ended, it was cancelled."""
        self._end(CANCELLED)

    def _end(self, outcome: str) -> None:
        if self._ended:
            return
        self._ended = True
        seconds = time.perf_counter() - self._began
        self._metrics.in_flight.dec()
        self._metrics.ended(
            self._fields["operation"],
            outcome,
            seconds=seconds,
            first=self._first,
            events=self._events,
        )
        milliseconds = round(1000 * seconds, 3)
        fields = {**self._fields, "outcome": outcome, "ms": milliseconds, "events": self._events}
        log.info(
            "%s: %s, %.1f ms, %d events",
            self._fields["operation"],
            outcome,
            milliseconds,
            self._events,
            extra={CALL: fields},
        )
