"""What all actors on the bus tell of their work, as numbers by service: calls, errors, what runs and what waits."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from ..bus.transport import ServiceStats

OTHER: Final = "other"
"""Stands for services that cannot have a label of their own."""
MOST_SERVICES = 100
"""How many services have a label of their own: anybody on the bus may announce some."""
MOST_INSTANCES = 4096
"""Of how many instances it is remembered how far they have been counted; actors that start again are new ones."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Count = Annotated[int, Meta(ge=0, le=1 << 53)]


class ServiceNumbers(msgspec.Struct, frozen=True):
    """What every actor of ours tells; see `ayllu.bus.service.Service.stats`."""

    calls: Count
    errors: Count
    running: Count
    waiting: Count


class ActorNumbers:
    """The numbers of all services. Counts go on where an instance ends, or its actor starts again from zero."""

    def __init__(self) -> None:
        self._counted: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._calls: dict[str, int] = {}
        self._errors: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._waiting: dict[str, int] = {}

    def take(self, told: Sequence[ServiceStats]) -> None:
        """Take what the live instances tell now; who tells no such numbers is left out."""
        self._running = dict.fromkeys(self._running, 0)
        self._waiting = dict.fromkeys(self._waiting, 0)
        for one in told:
            try:
                numbers = msgspec.convert(one.data, ServiceNumbers)
            except msgspec.ValidationError:
                continue
            self._add(self._label(one.name), one.id, numbers)
        while len(self._counted) > MOST_INSTANCES:
            self._counted.popitem(last=False)

    def _label(self, name: str) -> str:
        if name in self._calls:
            return name
        return name if len(self._calls) < MOST_SERVICES and _NAME.fullmatch(name) else OTHER

    def _add(self, service: str, instance: str, numbers: ServiceNumbers) -> None:
        errors = min(numbers.errors, numbers.calls)
        calls_before, errors_before = self._counted.get(instance, (0, 0))
        self._counted[instance] = numbers.calls, errors
        self._counted.move_to_end(instance)
        for known, more in (
            (self._calls, max(0, numbers.calls - calls_before)),
            (self._errors, max(0, errors - errors_before)),
            (self._running, numbers.running),
            (self._waiting, numbers.waiting),
        ):
            known[service] = known.get(service, 0) + more

    def collect(self) -> Iterable[Metric]:
        """Return them as Prometheus knows them."""
        calls = CounterMetricFamily(
            "ayllu_actor_calls",
            "Requests to actors that ended, whoever asked, by outcome: ok or error.",
            labels=["service", "outcome"],
        )
        for service, count in self._calls.items():
            calls.add_metric([service, "ok"], max(0, count - self._errors[service]))
            calls.add_metric([service, "error"], self._errors[service])
        yield calls
        for name, help_, counts in (
            ("running", "Requests that actors are working on.", self._running),
            ("waiting", "Requests that wait with actors for a slot.", self._waiting),
        ):
            gauge = GaugeMetricFamily(f"ayllu_actor_{name}", help_, labels=["service"])
            for service, count in counts.items():
                gauge.add_metric([service], count)
            yield gauge
