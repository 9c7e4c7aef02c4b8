"""What `ayllu top` makes of two looks at a bus, and how it shows it."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from ayllu.bus.transport import ServiceStats
from ayllu.runtime.top import MOST_ROWS, ActorRow, Look, ModelRow, StreamRow, TurnFacts, top_of
from ayllu.runtime.top_streams import ConsumerFacts, StreamFacts
from ayllu.runtime.top_view import size, top_view

pytestmark = pytest.mark.requirement("top-command")


def actor(name: str, id_: str = "1", /, **data: Any) -> ServiceStats:
    return ServiceStats(name, id_, data)


def counts(calls: int, errors: int = 0, running: int = 0, waiting: int = 0) -> dict[str, int]:
    return {"calls": calls, "errors": errors, "running": running, "waiting": waiting}


def engine(id_: str, model: str, tokens: int, **fields: int) -> ServiceStats:
    told = {"slots": 4, "slots_in_use": 1, "waiting": 2, "prompt_tokens": 5, **fields}
    return actor("inference", id_, model=model, completion_tokens=tokens, **told)


def stream(name: str, last: int, /, **fields: int) -> StreamFacts:
    told = {"entries": 3, "bytes": 2048, "limit": 1 << 20, **fields}
    return StreamFacts(name, last=last, **told)


def shown(now: Look, before: Look | None = None) -> str:
    console = Console(width=140, color_system=None)
    with console.capture() as capture:
        console.print(top_view(top_of(before, now)))
    return capture.get()


def test_nothing_is_there() -> None:
    top = top_of(None, Look(1.0))
    assert (top.actors, top.models, top.turns, top.streams, top.left_out) == ([], [], [], [], {})
    assert shown(Look(1.0)).count("none") == 4


def test_instances_of_a_service_are_one_row_with_rates() -> None:
    before = Look(10.0, [actor("tools", "1", **counts(10)), actor("tools", "2", **counts(7, 7))])
    now = Look(
        12.0,
        [
            actor("tools", "1", **counts(16, 1, running=2)),
            # One that began anew counts from zero, and so does one that is new.
            actor("tools", "2", **counts(4, 2, waiting=1)),
            actor("tools", "3", **counts(2, 0, running=1)),
        ],
    )
    assert top_of(before, now).actors == [ActorRow("tools", 3, 3, 1, 6.0, 1.5)]
    assert top_of(None, now).actors == [ActorRow("tools", 3, 3, 1)]
    assert top_of(now, now).actors == [ActorRow("tools", 3, 3, 1)], "no time has passed"


def test_actors_that_tell_nothing_or_nonsense_are_there() -> None:
    now = Look(1.0, [actor("own"), actor("odd", calls="many", running=-1)])
    assert [row.service for row in top_of(None, now).actors] == ["odd", "own"]


def test_engines_of_a_model_are_one_row() -> None:
    before = Look(1.0, [engine("a", "small", 100), engine("b", "small", 50)])
    odd = actor("inference", "c", model=3)
    now = Look(3.0, [engine("a", "small", 300), engine("b", "small", 50), engine("d", "x", 8), odd])
    assert top_of(before, now).models == [
        ModelRow("small", 2, 8, 2, 4, 100.0),
        ModelRow("x", 1, 4, 1, 2, 4.0),
    ]


def test_streams_tell_how_fast_they_grow_and_what_waits() -> None:
    before = Look(1.0, streams=[stream("WAKE", 10), stream("MADE_ANEW", 50)])
    consumers = [ConsumerFacts("WAKE", "a", 3, 1), ConsumerFacts("WAKE", "b", 4, 0)]
    streams = [stream("KV_agents", 9), stream("MADE_ANEW", 4), stream("NEW", 8), stream("WAKE", 20)]
    top = top_of(before, Look(3.0, streams=streams, consumers=consumers))
    assert top.streams == [
        StreamRow("MADE_ANEW", 3, 2048, 1 << 20, 2.0),
        StreamRow("NEW", 3, 2048, 1 << 20, 0.0),
        StreamRow("WAKE", 3, 2048, 1 << 20, 5.0, 7, 1),
    ]


def test_the_oldest_turn_comes_first_and_what_waits_last() -> None:
    turns = [
        TurnFacts("a", "1", "queued"),
        *(TurnFacts("a", str(n), "running", "", n) for n in (2, 3)),
    ]
    assert [turn.turn for turn in top_of(None, Look(1.0, turns=turns)).turns] == ["3", "2", "1"]


@pytest.mark.requirement("top-bounded")
def test_what_is_left_out_is_said() -> None:
    many = range(MOST_ROWS + 3)
    now = Look(
        1.0,
        [actor(f"own-{number}") for number in many],
        [stream(f"S{number}", 1) for number in many],
        turns_left_out=9000,
    )
    top = top_of(None, now)
    assert (len(top.actors), len(top.streams)) == (MOST_ROWS, MOST_ROWS)
    assert top.left_out == {"actors": 3, "streams": 3, "turns": 9000}
    assert shown(now).count("and 3 more") == 2
    assert "and 3 more" in shown(now).splitlines()[-1]
    assert "and 9,000 more" in shown(now)


def test_tables_for_people() -> None:
    before = Look(1.0, [actor("tools", **counts(0)), engine("a", "small", 0)], [stream("DLQ", 1)])
    now = Look(
        2.0,
        [actor("tools", **counts(1500, 2, 1, 3)), engine("a", "small", 37)],
        [stream("DLQ", 3, limit=-1)],
        [ConsumerFacts("DLQ", "c", 5, 2)],
        [
            TurnFacts("support", "t1", "waiting", "tools: pay", 75.0, 1234, 2),
            TurnFacts("clerk", "t2", "queued"),
        ],
    )
    lines = [" ".join(line.split()) for line in shown(now, before).splitlines()]
    assert "tools 1 1 3 1,500 2.0" in lines
    assert "small 1 4 1 2 37.0" in lines
    assert "support t1 waiting tools: pay 75.00 s 1,234 2" in lines
    assert "clerk t2 queued 0 0" in lines
    assert "DLQ 3 2.0 KiB 2.0 5 2" in lines


def test_what_does_nothing_is_only_named() -> None:
    now = Look(
        2.0,
        [actor("idle-one", **counts(9)), actor("idle-two"), actor("busy", **counts(3, running=1))],
        [stream("EMPTY", 5, entries=0), stream("FULL", 5)],
    )
    lines = [line.strip() for line in shown(now).splitlines()]
    assert "idle: idle-one, idle-two" in lines
    assert "empty: EMPTY" in lines
    assert [line.split()[0] for line in lines if line.startswith(("busy", "FULL"))] == [
        "busy",
        "FULL",
    ]


@pytest.mark.requirement("seeing-hostile")
def test_names_are_harmless_and_short() -> None:
    bad = "\x1b[2J[red]x[/red]\n" + "y" * 200
    now = Look(
        1.0,
        [actor(bad), actor(bad + "2", running=1), engine("a", bad, 1)],
        [stream(bad, 1)],
        turns=[TurnFacts(bad, bad, "running", bad, 1.0)],
    )
    text = shown(now)
    assert not [char for char in text if (ord(char) < 32 and char != "\n") or ord(char) == 127]
    assert "[red]x[/red]" in text, "it is no markup"
    assert "y" * 40 not in text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (256 << 20, "256 MiB"),
        (4 << 50, "4096 TiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
