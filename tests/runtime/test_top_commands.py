"""How `ayllu top` goes on: look after look, over a bus that is away for a while."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from ayllu.bus.bus import local_bus
from ayllu.bus.transport import ServiceStats
from ayllu.runtime.top import Look, Top
from ayllu.runtime.top_commands import observing, run_top, watch
from ayllu.schemas import BusError, InvalidRequest

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("top-command")]


class Seen(Exception):  # noqa: N818 - it is no error
    """Enough was seen."""


def looks(*found: Look | Exception) -> Callable[[], Awaitable[Look]]:
    """Return what finds one after the other, and then has seen enough."""
    left = list(found)

    async def look() -> Look:
        if not left:
            raise Seen
        one = left.pop(0)
        if isinstance(one, Exception):
            raise one
        return one

    return look


def at(seconds: float, calls: int) -> Look:
    data = {"calls": calls, "errors": 0, "running": 0, "waiting": 0}
    return Look(seconds, [ServiceStats("tools", "1", data)])


class Screen:
    """Remembers what was shown."""

    def __init__(self) -> None:
        self.shown: list[float | str | None] = []

    def __call__(self, top: Top | None, problem: str = "") -> None:
        self.shown.append(problem if top is None else top.actors[0].calls_per_second)


async def test_once_is_shown_with_rates() -> None:
    screen = Screen()
    await watch(looks(at(1, 0), at(3, 4)), screen, once=True, pause=0)
    assert screen.shown == [2.0]


async def test_again_and_again() -> None:
    screen = Screen()
    with pytest.raises(Seen):
        await watch(looks(at(1, 0), at(3, 4), at(4, 5)), screen, once=False, pause=0)
    assert screen.shown == [None, 2.0, 1.0]


async def test_a_bus_that_is_away_is_waited_for() -> None:
    screen = Screen()
    found = looks(at(1, 0), BusError("it is away"), TimeoutError(), at(5, 8))
    with pytest.raises(Seen):
        await watch(found, screen, once=False, pause=0)
    assert screen.shown == [None, "it is away", "the bus does not answer", 2.0]


async def test_what_will_never_be_told_is_an_error() -> None:
    for once, error in (
        (True, BusError("it is away")),
        (True, TimeoutError()),
        (False, BusError("it has no JetStream", retryable=False)),
    ):
        with pytest.raises(type(error)):
            await watch(looks(error), Screen(), once=once, pause=0)


async def test_a_look_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ayllu.runtime.top_commands.LOOK_SECONDS", 0.01)

    async def look() -> Look:
        await anyio.sleep_forever()
        raise AssertionError

    with pytest.raises(TimeoutError):
        await watch(look, Screen(), once=True)


async def test_a_bus_without_jetstream_is_no_group_of_errors() -> None:
    async with local_bus() as bus, observing(bus) as observer:
        with pytest.raises(BusError, match="no JetStream"):
            await observer.look()


async def test_a_bus_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ayllu.runtime.top_commands.CONNECT_SECONDS", 0.2)
    options = argparse.Namespace(once=True, json=False)
    with pytest.raises(InvalidRequest, match="--bus"):
        await run_top(None, tmp_path, options)
    with pytest.raises(BusError, match="does not answer"):
        await run_top("nats://127.0.0.1:1", tmp_path, options)
