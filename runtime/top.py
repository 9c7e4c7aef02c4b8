"""From two looks at a bus to what ``ayllu top`` shows. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from ..bus.client import INFERENCE_SERVICE
from ..bus.transport import ServiceStats
from .actor_metrics import Count
from .metrics import EngineStats
from .top_streams import ConsumerFacts, StreamFacts

MOST_ROWS = 40
"""How many rows a part has: anybody on the bus may announce services and make streams."""
INTERNAL = ("KV_", "OBJ_")
"""How streams begin that stand behind keys and values, and objects."""


class TurnFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """A turn that has not ended.

    Attributes:
        agent: the agent.
        turn: the turn.
        status: where it is.
        step: what it does.
        seconds: since it began.
        tokens: of its steps that have ended.
        behind: how many commands more stand in the same lane.
    """

    agent: str
    turn: str
    status: str
    step: str = ""
    seconds: float | None = None
    tokens: int = 0
    behind: int = 0


class Look(msgspec.Struct, frozen=True):
    """What the bus told at a moment.

    Attributes:
        at: when, in seconds of a clock that does not go back.
        services: what actors tell of their work.
        streams: all streams.
        consumers: their durable consumers.
        turns: those that were looked at.
        turns_left_out: lanes with something to do that were not looked at.
    """

    at: float
    services: Sequence[ServiceStats] = ()
    streams: Sequence[StreamFacts] = ()
    consumers: Sequence[ConsumerFacts] = ()
    turns: Sequence[TurnFacts] = ()
    turns_left_out: int = 0


class ActorRow(msgspec.Struct, frozen=True):
    """All instances of a service; rates are None in the first look."""

    service: str
    instances: int
    running: int
    waiting: int
    calls_per_second: float | None = None
    errors_per_second: float | None = None


class ModelRow(msgspec.Struct, frozen=True):
    """All engines that serve a model."""

    model: str
    actors: int
    slots: int
    in_use: int
    waiting: int
    tokens_per_second: float | None = None


class StreamRow(msgspec.Struct, frozen=True):
    """A stream: what it keeps, how fast it grows, and what waits for its durable consumers."""

    stream: str
    entries: int
    bytes: int
    limit: int
    entries_per_second: float | None = None
    pending: int | None = None
    unacknowledged: int | None = None


class Top(msgspec.Struct, frozen=True):
    """What is shown. What has no row is counted in ``left_out``, by the part."""

    actors: list[ActorRow]
    models: list[ModelRow]
    turns: list[TurnFacts]
    streams: list[StreamRow]
    left_out: dict[str, int]


class _Numbers(msgspec.Struct, frozen=True):
    """What an actor tells of its work; actors that are not ours may tell none of it."""

    calls: Count = 0
    errors: Count = 0
    running: Annotated[int, Meta(ge=0)] = 0
    waiting: Annotated[int, Meta(ge=0)] = 0


def top_of(before: Look | None, now: Look) -> Top:
    """Return what is shown.

    Args:
        before: an earlier look, for rates; without one there are none.
        now: the present one.
    """
    actors, models = _actors(before, now), _models(before, now)
    streams = _streams(before, now)
    left_out = {
        "actors": len(actors) - MOST_ROWS,
        "models": len(models) - MOST_ROWS,
        "turns": now.turns_left_out,
        "streams": len(streams) - MOST_ROWS,
    }
    return Top(
        actors[:MOST_ROWS],
        models[:MOST_ROWS],
        sorted(now.turns, key=lambda turn: (turn.seconds is None, -(turn.seconds or 0.0))),
        streams[:MOST_ROWS],
        {part: count for part, count in left_out.items() if count > 0},
    )


def _rate(before: Look | None, now: Look, grown: int) -> float | None:
    seconds = now.at - before.at if before is not None else 0.0
    return grown / seconds if seconds > 0 else None


def _grown(before: Mapping[str, int], now: Mapping[str, int]) -> int:
    """Return by how much counts have grown; what began meanwhile counts from zero, and what began anew, too."""
    return sum(
        count - known if (known := before.get(name, 0)) <= count else count
        for name, count in now.items()
    )


def _numbers(services: Iterable[ServiceStats]) -> dict[str, dict[str, _Numbers]]:
    """Return what each instance of each service tells."""
    found: dict[str, dict[str, _Numbers]] = {}
    for one in services:
        try:
            told = msgspec.convert(one.data, _Numbers)
        except msgspec.ValidationError:
            told = _Numbers()
        found.setdefault(one.name, {})[one.id] = told
    return found


def _actors(before: Look | None, now: Look) -> list[ActorRow]:
    known = _numbers(before.services if before is not None else ())
    rows = []
    for service, instances in sorted(_numbers(now.services).items()):
        earlier = known.get(service, {})
        calls, errors = (
            _grown(
                {id_: getattr(one, name) for id_, one in earlier.items()},
                {id_: getattr(one, name) for id_, one in instances.items()},
            )
            for name in ("calls", "errors")
        )
        rows.append(
            ActorRow(
                service,
                len(instances),
                sum(one.running for one in instances.values()),
                sum(one.waiting for one in instances.values()),
                _rate(before, now, calls),
                _rate(before, now, errors),
            )
        )
    return rows


def _engines(services: Iterable[ServiceStats]) -> dict[str, dict[str, EngineStats]]:
    """Return what each engine of each model tells."""
    found: dict[str, dict[str, EngineStats]] = {}
    for one in services:
        if one.name == INFERENCE_SERVICE:
            try:
                told = msgspec.convert(one.data, EngineStats)
            except msgspec.ValidationError:
                continue
            found.setdefault(told.model, {})[one.id] = told
    return found


def _models(before: Look | None, now: Look) -> list[ModelRow]:
    known = _engines(before.services if before is not None else ())
    rows = []
    for model, engines in sorted(_engines(now.services).items()):
        tokens = _grown(_tokens(known.get(model, {})), _tokens(engines))
        rows.append(
            ModelRow(
                model,
                len(engines),
                sum(one.slots for one in engines.values()),
                sum(one.slots_in_use for one in engines.values()),
                sum(one.waiting for one in engines.values()),
                _rate(before, now, tokens),
            )
        )
    return rows


def _tokens(engines: Mapping[str, EngineStats]) -> dict[str, int]:
    return {id_: one.completion_tokens for id_, one in engines.items()}


def _streams(before: Look | None, now: Look) -> list[StreamRow]:
    known = {one.name: one.last for one in before.streams} if before is not None else {}
    rows = []
    for one in now.streams:
        if one.name.startswith(INTERNAL):
            continue
        consumers = [consumer for consumer in now.consumers if consumer.stream == one.name]
        grown = _grown({one.name: known.get(one.name, one.last)}, {one.name: one.last})
        rows.append(
            StreamRow(
                one.name,
                one.entries,
                one.bytes,
                one.limit,
                _rate(before, now, grown),
                sum(consumer.pending for consumer in consumers) if consumers else None,
                sum(consumer.unacknowledged for consumer in consumers) if consumers else None,
            )
        )
    return rows
