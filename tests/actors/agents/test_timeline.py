"""Whatever way journal and deltas come to a reader, it tells the same events, each once, in order."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.journals import AT, began, weather

from ayllu.actors.agents.records import (
    Answered,
    Claimed,
    Delta,
    Ended,
    JournalRecord,
    Resumed,
    Said,
    StepBegan,
)
from ayllu.actors.agents.step import Event, Kind
from ayllu.actors.agents.timeline import DeltaOrder, Timeline
from ayllu.actors.agents.turn import Turn
from ayllu.schemas import ToolResponse, TurnStatus

pytestmark = pytest.mark.requirement("turn-timeline")


@dataclass
class Written:
    """What executors wrote of a turn: two streams, each in its order."""

    journal: list[JournalRecord] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    turn: Turn = field(default_factory=Turn)

    def write(self, record: JournalRecord) -> None:
        self.journal.append(record)
        self.turn.apply(record)

    @property
    def reference(self) -> list[Event]:
        """The events as the journal alone tells them."""
        turn = Turn()
        return [event for record in self.journal for event in turn.apply(record)]


@st.composite
def turns(draw: st.DrawFn) -> Written:
    """A turn of some steps, in which executors are lost in mid-sentence, and write on as zombies."""
    written = Written()
    written.write(began())
    for number in range(draw(st.integers(1, 3))):
        if number:
            written.write(StepBegan(at=AT, kind=Kind.model_inference))
        speak(draw, written)
        if draw(st.booleans()):
            written.write(StepBegan(at=AT, kind=Kind.tool_execution, calls=[weather("x")]))
            written.write(Answered(at=AT, call=0, response=ToolResponse("weather", "sun")))
    if draw(st.booleans()):
        written.write(Ended(at=AT, status=TurnStatus.cancelled))
    return written


def speak(draw: st.DrawFn, written: Written) -> None:
    """Say some tokens, perhaps by several executors."""
    text, cuts = "", list[int]()
    while True:
        for token in draw(st.lists(st.sampled_from(["a", "bc", " "]), max_size=3)):
            first = written.turn.step
            assert first is not None
            written.deltas.append(Delta(written.turn.attempt, first.first + len(cuts), [token]))
            text += token
            cuts.append(len(text))
        if not draw(st.booleans()):
            written.write(Said(at=AT, text=text, cuts=cuts))
            return
        step, old = written.turn.step, written.turn.attempt
        assert step is not None
        written.write(Claimed(at=AT, attempt=old + 1, executor="next", epoch=1))
        written.deltas.append(Delta(old + 1, written.turn.index))
        if cuts:
            written.write(Resumed(at=AT, text=text, cuts=list(cuts)))
        # The lost one goes on for a while, and does not know that it counts for nobody.
        for number in range(draw(st.integers(0, 2))):
            written.deltas.append(Delta(old, step.first + len(cuts) + number, ["ZOMBIE"]))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), written=turns())
def test_readers_tell_what_the_journal_tells(data: st.DataObject, written: Written) -> None:
    reference = written.reference
    start = data.draw(st.integers(0, len(reference)))
    timeline = Timeline(start)
    lost = data.draw(st.sets(st.integers(0, max(0, len(written.deltas) - 1))))
    deltas = [
        delta
        for number, delta in enumerate(written.deltas)
        if number not in lost or not delta.texts
    ]
    records = list(written.journal)
    told: list[Event] = []
    while records or deltas:
        if deltas and (not records or data.draw(st.booleans())):
            told += timeline.delta(deltas.pop(0))
        else:
            told += timeline.record(records.pop(0))
        assert not timeline.lost
    assert told == reference[start:]
    assert timeline.next == max(start, len(reference))
    assert timeline.partial_text == ""


def test_tokens_are_told_before_the_journal_has_them() -> None:
    timeline = Timeline()
    timeline.record(began())
    assert len(timeline.delta(Delta(1, 1, ["a", "b"]))) == 2
    assert timeline.partial_text == "ab"
    assert timeline.delta(Delta(1, 1, ["a"])) == []
    assert timeline.delta(Delta(1, 5, ["late"])) == []
    assert [event.index for event in timeline.record(Said(at=AT, text="abc", cuts=[1, 2, 3]))] == [
        3,
        4,
    ]


def test_a_reader_that_is_ahead_of_what_was_kept_is_lost() -> None:
    timeline = Timeline()
    timeline.record(began())
    timeline.delta(Delta(1, 1, ["a", "b"]))
    timeline.record(Claimed(at=AT, attempt=2, executor="b", epoch=2))
    assert timeline.lost
    timeline = Timeline()
    timeline.record(began())
    timeline.record(Claimed(at=AT, attempt=2, executor="b", epoch=2))
    assert not timeline.lost


def test_an_attempt_that_has_begun_ends_those_before() -> None:
    order = DeltaOrder()
    assert list(order.accepted(Delta(1, 3, ["a", "b"]))) == [(3, "a"), (4, "b")]
    assert list(order.accepted(Delta(2, 5))) == []
    assert list(order.accepted(Delta(1, 5, ["c"]))) == []
    assert list(order.accepted(Delta(2, 5, ["d"]))) == [(5, "d")]


def test_text_of_a_step_that_is_no_inference_is_not_told() -> None:
    timeline = Timeline()
    timeline.record(began())
    timeline.record(Said(at=AT, text="", cuts=[], tool_calls=[weather("x")]))
    timeline.record(StepBegan(at=AT, kind=Kind.tool_execution, calls=[weather("x")]))
    assert timeline.partial_text == ""
    assert timeline.delta(Delta(1, timeline.next, ["stray"])) == []
