"""Server-sent events, cut anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.actors.engines.openai.sse import EventParser
from ayllu.schemas import EngineError

pytestmark = pytest.mark.requirement("upstream-sse")

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
LINES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=8).map(str.encode)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """Return the bytes of a stream and the data of its events, with comments and other fields among them."""
    stream, events = b"", []
    for data in draw(st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=5)):
        end = draw(ENDS)
        for line in data:
            noise = draw(st.sampled_from([b"", b": ping" + end, b"event: x" + end, b"id" + end]))
            space = b" " if line.startswith(b" ") else draw(st.sampled_from([b"", b" "]))
            stream += noise + b"data:" + space + line + end
        stream += end
        events.append(b"\n".join(data))
    return stream, events


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted(cut % (len(stream) + 1) for cut in cuts)
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


@given(streams(), st.lists(st.integers(0, 10_000), max_size=12))
def test_events_are_the_same_however_they_are_cut(
    made: tuple[bytes, list[bytes]], cuts: list[int]
) -> None:
    stream, events = made
    parser = EventParser()
    found = [event for piece in pieces(stream, cuts) for event in parser.feed(piece)]
    assert found == events
    bytewise = EventParser()
    assert [event for byte in stream for event in bytewise.feed(bytes([byte]))] == events


@given(st.binary(max_size=200), st.lists(st.integers(0, 1000), max_size=5))
def test_any_bytes_are_read_the_same_however_they_are_cut(stream: bytes, cuts: list[int]) -> None:
    parser = EventParser()
    found = [event for piece in pieces(stream, cuts) for event in parser.feed(piece)]
    assert found == EventParser().feed(stream)


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert EventParser().feed(b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n") == [b"a"]


def test_an_event_without_data_is_none() -> None:
    assert EventParser().feed(b"event: x\n\ndata\n\n\n\n") == [b""]


@pytest.mark.parametrize(
    "piece",
    [b"x" * 10, b"data: " + b"x" * 10, b"data: xxxxxxxx\n", b"data\n", b":" * 10],
)
def test_an_event_is_bounded(piece: bytes) -> None:
    parser = EventParser(max_bytes=1000)
    with pytest.raises(EngineError):
        for _ in range(2000):
            parser.feed(piece)


def test_comments_and_many_events_are_not_bounded() -> None:
    parser = EventParser(max_bytes=100)
    for _ in range(100):
        assert parser.feed(b": keep alive\n") == []
        assert parser.feed(b"data: " + b"x" * 40) == []
        assert parser.feed(b"x" * 40 + b"\n\n") == [b"x" * 80]
