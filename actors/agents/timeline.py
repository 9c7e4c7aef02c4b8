"""From the journal and the deltas of a turn, which come by two streams, to one row of events without gap or double. No I/O.

Deltas are told as they come. What a lost stream of deltas withheld is told when the journal has it. Deltas of an attempt
that another one has replaced do not count: the order of their stream decides, which is the same for all readers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from ...schemas import AgenticSystemExecuteResponseEventType
from .records import Claimed, Delta, JournalRecord
from .step import Chunk, Event, Kind
from .turn import Turn


class DeltaOrder:
    """Which deltas count, by the order of their stream."""

    def __init__(self) -> None:
        self._attempt = 0

    def accepted(self, delta: Delta) -> Iterator[tuple[int, str]]:
        """Yield the texts of a delta under their indexes; none if a later attempt has begun."""
        if delta.attempt < self._attempt:
            return
        self._attempt = delta.attempt
        yield from enumerate(delta.texts, delta.index)


class Timeline:
    """The events of a turn as one reader sees them.

    Args:
        index: the first event that is wanted.
        epoch: that of the position; 0 where nothing was seen.

    Attributes:
        turn: what is known of the turn.
        next: the index of the next event.
        lost: whether events before ``next`` were replaced by others, since a stream of deltas was lost: the reader must
            begin anew from the turn's state.
    """

    def __init__(self, index: int = 0, epoch: int = 0) -> None:
        self.turn = Turn()
        self.next = index
        self.lost = False
        self._epoch = epoch
        self._order = DeltaOrder()
        self._early: deque[Delta] = (
            deque()
        )  # from one on of an attempt that the journal has not told of yet
        self._texts: dict[int, str] = {}
        self._solid = (
            0  # all texts before this one are known, from the last event of the journal on
        )
        self._events: dict[int, Event] = {}

    @property
    def partial_text(self) -> str:
        """What the step of the model that runs has said."""
        step = self.turn.step
        if step is None or step.kind is not Kind.model_inference:
            return ""
        return step.text + "".join(
            self._texts[index] for index in range(self.turn.index, self.next)
        )

    def record(self, record: JournalRecord) -> list[Event]:
        """Take a record of the journal, and return the events that are known by it."""
        if isinstance(record, Claimed) and record.epoch != self.turn.epoch:
            # Who has a position of that epoch has seen what came after the loss.
            self.lost = self.lost or (self._epoch < record.epoch and self.next > self.turn.index)
            self._texts.clear()
            self._solid = 0
        for event in self.turn.apply(record):
            self._events[event.index] = event
        while self._early and self._early[0].attempt <= self.turn.attempt:
            self._keep(self._early.popleft())
        self._texts = {
            index: text for index, text in self._texts.items() if index >= self.turn.index
        }
        return self.told()

    def delta(self, delta: Delta) -> list[Event]:
        """Take tokens, and return the events that are known by them."""
        self._take(delta)
        return self.told()

    def _take(self, delta: Delta) -> None:
        if self._early or delta.attempt > self.turn.attempt:
            self._early.append(delta)  # In the order of their stream, which decides.
        else:
            self._keep(delta)

    def _keep(self, delta: Delta) -> None:
        for index, text in self._order.accepted(delta):
            self._texts.setdefault(index, text)

    def told(self) -> list[Event]:
        """Return what follows without a gap on what was told, and forget it."""
        self._solid = max(self._solid, self.turn.index)
        while self._solid in self._texts:
            self._solid += 1
        found: list[Event] = []
        while True:
            event = self._events.pop(self.next, None) or self._live(self.next)
            if event is None:
                self._events = {i: one for i, one in self._events.items() if i >= self.next}
                return found
            found.append(event)
            self.next += 1

    def _live(self, index: int) -> Event | None:
        step = self.turn.step
        if step is None or step.kind is not Kind.model_inference:
            return None
        # Behind a gap there may be the end of the step that runs: the text is perhaps another one's.
        if not self.turn.index <= index < self._solid:
            return None
        progress = AgenticSystemExecuteResponseEventType.step_progress
        text = self._texts[index]
        return Event(index, Chunk(progress, step.uuid, step.kind, response_text_delta=text))
