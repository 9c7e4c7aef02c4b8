"""``/metrics``: what the gateway and the actors behind it are doing, in the text format of Prometheus.

Labels have few values: operations of the table, the first hundred of own actors that were called (any other name is ``own``
or, where nobody has it, ``unknown``), error codes of ours, names of services, the
models that live actors serve. What clients send never becomes a label.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import anyio
import anyio.to_thread
import msgspec
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from ..bus.bus import Bus
from ..bus.client import INFERENCE_SERVICE
from ..bus.transport import ServiceStats
from ..schemas import AylluError, Operation
from ..schemas.errors import error_codes
from .actor_metrics import ActorNumbers
from .health import Fresh

log = logging.getLogger(__name__)

UNKNOWN: Final = "unknown"
OWN: Final = "own"
"""Stands for the operations of own actors beyond the first ones that were called."""
MOST_OWN = 100
OK: Final = "ok"
CANCELLED: Final = "cancelled"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""Upper ends of the buckets of latencies."""
BUS_SECONDS = 2.0
"""How long a scrape waits for the bus; after that it goes on without the numbers of the actors."""

_CODES = frozenset(error_codes())


class EngineStats(msgspec.Struct, frozen=True):
    """What an inference actor tells about its engine (`InferenceActor.service_stats`)."""

    model: str
    slots: int
    slots_in_use: int
    waiting: int
    prompt_tokens: int
    completion_tokens: int


class Metrics:
    """The numbers of one gateway. Nothing here is done per token: batches, calls and scrapes are counted."""

    def __init__(self, operations: Mapping[str, Operation]) -> None:
        self._operations = operations
        self._own: set[str] = set()
        # To look a number up by its labels takes longer than to count.
        self._outcomes: dict[tuple[str, str], Counter] = {}
        self._numbers: dict[str, tuple[Histogram, Histogram, Counter]] = {}
        self.registry = registry = CollectorRegistry()
        PlatformCollector(registry=registry)
        ProcessCollector(registry=registry)
        self._calls = Counter(
            "ayllu_calls",
            "Calls that ended, refused ones included, by outcome: ok or the code of the error.",
            ["operation", "outcome"],
            registry=registry,
        )
        self._events = Counter(
            "ayllu_events", "Events that were forwarded.", ["operation"], registry=registry
        )
        self._seconds = Histogram(
            "ayllu_call_seconds",
            "From the start of a call to its end.",
            ["operation"],
            buckets=SECONDS,
            registry=registry,
        )
        self._first = Histogram(
            "ayllu_first_event_seconds",
            "From the start of a call to its first event.",
            ["operation"],
            buckets=SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("ayllu_calls_in_flight", "Calls that run.", registry=registry)
        self.websockets = Gauge("ayllu_websockets", "Open websockets.", registry=registry)
        self.dropped = Counter(
            "ayllu_dropped_clients", "Clients that took nothing for too long.", registry=registry
        )
        self._connections = Gauge(
            "ayllu_connections", "Open client connections.", registry=registry
        )

    def watch_connections(self, count: Callable[[], int]) -> None:
        """Tell where the number of open connections is found."""
        self._connections.set_function(count)

    def ended(
        self, operation: str, outcome: str, *, seconds: float, first: float | None, events: int
    ) -> None:
        """Count a call that ended."""
        name = self._label(operation)
        self._count(name, outcome_label(outcome))
        numbers = self._numbers.get(name)
        if numbers is None:
            of_first = self._first.labels(name)
            numbers = self._seconds.labels(name), of_first, self._events.labels(name)
            self._numbers[name] = numbers
        numbers[0].observe(seconds)
        if first is not None:
            numbers[1].observe(first)
        numbers[2].inc(events)

    def refused(self, operation: str, outcome: str) -> None:
        """Count a call that was refused before it began."""
        self._count(self._label(operation), outcome_label(outcome))

    def _count(self, name: str, outcome: str) -> None:
        counter = self._outcomes.get((name, outcome))
        if counter is None:
            counter = self._outcomes[name, outcome] = self._calls.labels(name, outcome)
        counter.inc()

    def _label(self, operation: str) -> str:
        """Return the label of an operation that was found, or of none (``unknown``, or empty)."""
        if operation in self._operations or operation in self._own:
            return operation
        if operation in ("", UNKNOWN):
            return UNKNOWN
        if len(self._own) >= MOST_OWN:
            return OWN
        self._own.add(operation)
        return operation


def outcome_label(outcome: str) -> str:
    """Return an outcome as a label; codes that only others know are one."""
    return outcome if outcome == OK or outcome in _CODES else UNKNOWN


class _Snapshot(Collector):
    """The numbers that are asked for at each scrape: those of the bus, and of the actors behind it."""

    def __init__(
        self, bus: Bus, engines: Sequence[tuple[str, EngineStats]], actors: ActorNumbers
    ) -> None:
        self._bus = bus
        self._engines = engines
        self._actors = actors

    def collect(self) -> Iterable[Metric]:
        transport = self._bus.transport
        connected = GaugeMetricFamily("ayllu_bus_connected", "Whether the bus is there.")
        connected.add_metric([], float(transport.connected))
        reconnects = CounterMetricFamily(
            "ayllu_bus_reconnects", "How often the bus was lost and found again."
        )
        reconnects.add_metric([], transport.reconnects)
        yield connected
        yield reconnects
        yield from self._actors.collect()
        yield from self._of_engines()

    def _of_engines(self) -> Iterable[Metric]:
        labels = ["model", "actor"]
        for name, help_ in (
            ("slots", "How many generations the engine runs at once."),
            ("slots_in_use", "How many generations it runs now."),
            ("waiting", "How many generations wait for a slot."),
        ):
            gauge = GaugeMetricFamily(f"ayllu_engine_{name}", help_, labels=labels)
            for actor, stats in self._engines:
                gauge.add_metric([stats.model, actor], getattr(stats, name))
            yield gauge
        tokens = CounterMetricFamily(
            "ayllu_tokens",
            "Tokens of generations that came to their end, whoever asked for them.",
            labels=[*labels, "kind"],
        )
        for actor, stats in self._engines:
            tokens.add_metric([stats.model, actor, "prompt"], stats.prompt_tokens)
            tokens.add_metric([stats.model, actor, "completion"], stats.completion_tokens)
        yield tokens


class MetricsPage:
    """Serves ``/metrics``."""

    def __init__(self, bus: Bus, metrics: Metrics) -> None:
        self._bus = bus
        self._metrics = metrics
        self._actors = ActorNumbers()
        self._engines = Fresh(self._ask_actors)

    async def page(self, _: Request) -> Response:
        """Return the page."""
        snapshot = CollectorRegistry()
        snapshot.register(_Snapshot(self._bus, await self._engines.get(), self._actors))
        # In a thread: the text of many numbers takes some milliseconds, and tokens shall not wait for it.
        page = await anyio.to_thread.run_sync(generate_latest, self._metrics.registry)
        page += generate_latest(snapshot)
        return Response(page, headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    async def _ask_actors(self) -> list[tuple[str, EngineStats]]:
        """Ask all actors for their numbers, and return those of the engines."""
        found: list[ServiceStats] = []
        with anyio.move_on_after(BUS_SECONDS):
            try:
                found = await self._bus.transport.stats("")
            except AylluError as error:
                log.warning("the actors could not be asked: %s", error.message)
        self._actors.take(found)
        engines: list[tuple[str, EngineStats]] = []
        for service in found:
            if service.name != INFERENCE_SERVICE:
                continue
            try:
                engines.append((service.id, msgspec.convert(service.data, EngineStats)))
            except msgspec.ValidationError as error:
                # Anybody on the bus may announce a service of this name.
                log.warning("the service %s tells its work wrongly: %s", service.id, error)
        return engines
