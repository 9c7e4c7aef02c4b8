"""The numbers of all actors, by service."""

from __future__ import annotations

from typing import Any

import pytest

from ayllu.bus.transport import ServiceStats
from ayllu.runtime.actor_metrics import MOST_INSTANCES, MOST_SERVICES, OTHER, ActorNumbers


def told(name: str, id_: str = "", **numbers: Any) -> ServiceStats:
    data = {"calls": 0, "errors": 0, "running": 0, "waiting": 0, **numbers}
    return ServiceStats(name, id_ or name, data)


def values(numbers: ActorNumbers, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in numbers.collect()
        for sample in family.samples
        if sample.name == name
    }


@pytest.mark.requirement("actor-numbers")
def test_counts_go_on_when_an_actor_starts_again() -> None:
    numbers = ActorNumbers()
    numbers.take([told("a", "1", calls=5, errors=2, running=1), told("a", "2", calls=1, running=2)])
    assert values(numbers, "ayllu_actor_calls_total") == {("a", "ok"): 4, ("a", "error"): 2}
    assert values(numbers, "ayllu_actor_running") == {("a",): 3}
    numbers.take([told("a", "3", calls=1, waiting=4)])  # Another life of the first.
    assert values(numbers, "ayllu_actor_calls_total") == {("a", "ok"): 5, ("a", "error"): 2}
    assert values(numbers, "ayllu_actor_running") == {("a",): 0}
    assert values(numbers, "ayllu_actor_waiting") == {("a",): 4}
    numbers.take([told("a", "2", calls=3), told("a", "3", calls=1)])  # It was only late.
    assert values(numbers, "ayllu_actor_calls_total")["a", "ok"] == 7


@pytest.mark.requirement("actor-numbers")
def test_what_others_tell_is_bounded() -> None:
    numbers = ActorNumbers()
    numbers.take(
        [
            told("wrong", calls=-1),
            told("wrong", calls="many"),
            told("wrong", running=1 << 60),
            ServiceStats("silent", "s", {}),
            told("liar", calls=1, errors=9),
            told("with space", calls=1),
            told("x" * 65, calls=1),
        ]
    )
    assert values(numbers, "ayllu_actor_calls_total") == {
        ("liar", "ok"): 0,
        ("liar", "error"): 1,
        (OTHER, "ok"): 2,
        (OTHER, "error"): 0,
    }
    for number in range(MOST_INSTANCES + 10):
        numbers.take([told(f"n{number}", calls=1)])
    assert len(values(numbers, "ayllu_actor_running")) == MOST_SERVICES
    numbers.take([told("liar", calls=0), told("n1", calls=1)])  # A count that goes back is none.
    assert values(numbers, "ayllu_actor_calls_total")["liar", "error"] == 1
