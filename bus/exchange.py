"""The exchange of one request and its stream of replies, as two state machines that know no transport and no clock.

The caller publishes a request with an inbox as reply subject. The responder publishes frames to ``<inbox>.<kind>``; the
kind is the last token of the subject, so that a data frame is the raw event and nothing else:

    a  accept      the responder's control subject; another one's, if the request was handed over before any data frame
    d  data        one event or reply
    c  claim       a reference to an event that was too large for a message
    h  heartbeat   the count of data frames so far; once a second, however busy
    e  end         the count, and the error or the assembled result

To the control subject the caller publishes how many frames it has taken (credit: the responder never has more than a
window of them on the way, so a slow reader slows the work instead of growing memory) or that it cancels. Heartbeats are
published with the control subject as reply, so that the bus itself tells the responder when its caller is gone.

A machine is fed with what came and the time; it answers with frames to send and with an outcome.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import msgspec

from ..schemas import (
    ActorLost,
    AylluError,
    BusError,
    Cancelled,
    DeadlineExceeded,
    ErrorInfo,
    InvalidRequest,
    SlowConsumer,
    Unavailable,
    decode,
    encode,
    error_from,
)

ACCEPT, DATA, CLAIM, HEARTBEAT, END = "a", "d", "c", "h", "e"

HEARTBEAT_SECONDS = 1.0
SILENCE_SECONDS = 4.0
"""After so long without any frame the responder is suspected, and given up after `GRACE_SECONDS` more."""
GRACE_SECONDS = 0.25
"""A caller that was itself held up finds the missing frames in its socket within this time."""
STALL_SECONDS = 30.0
"""A caller that takes nothing for so long, while frames wait for it, is given up."""
WINDOW = 256
"""How many data frames may be on the way."""


class Accept(msgspec.Struct, frozen=True, omit_defaults=True):
    """Names the responder's control subject, and how often the request was handed over before it took it."""

    control: str
    hops: int = 0


class Heartbeat(msgspec.Struct, frozen=True):
    """How many data frames were sent."""

    count: int


class End(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the exchange ended."""

    count: int
    error: ErrorInfo | None = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    claim: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """In the place of a result that is too large for a message."""


class Control(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a caller tells the responder: how many frames it has taken, or that it cancels."""

    received: int = 0
    cancel: bool = False


CANCEL = encode(Control(cancel=True))


@dataclass(frozen=True, slots=True)
class Claimed:
    """A reference to an event in the object store, in its place among the events."""

    reference: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The exchange ended well; ``result`` is the assembled reply of a stream, if it has one."""

    result: bytes | Claimed | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The exchange ended in an error; ``absent`` when nobody was there to take the request."""

    error: AylluError
    absent: bool = False


class Caller:
    """The caller's side.

    Attributes:
        events: what was received and not yet taken, in order.
        outcome: how it ended; events that came before it may still wait.
        outgoing: payloads for the control subject, to be published and cleared.
        control: the responder's control subject, once known.
        forgotten: whether frames that still come are of no interest any more.
    """

    __slots__ = (
        "_cancelling",
        "_count",
        "_credited",
        "_deadline",
        "_doubted",
        "_heard",
        "_hops",
        "_suspected",
        "_taken",
        "control",
        "events",
        "forgotten",
        "outcome",
        "outgoing",
    )

    def __init__(self, now: float, *, deadline: float) -> None:
        self.events: deque[bytes | Claimed] = deque()
        self.outcome: Ended | Failed | None = None
        self.outgoing: list[bytes] = []
        self.control: str | None = None
        self.forgotten = False
        self._deadline = deadline
        self._heard = now
        self._hops = 0
        self._suspected: float | None = None
        self._count = 0
        self._doubted: deque[bytes | Claimed] | None = None
        self._taken = 0
        self._credited = 0
        self._cancelling = False

    def receive(self, kind: str, payload: bytes, now: float) -> None:
        """Take a frame."""
        if kind in (DATA, CLAIM):
            self.receive_event(payload if kind == DATA else Claimed(payload), now)
            return
        self._heard = now
        self._suspected = None
        if kind == ACCEPT or self.outcome is None:
            try:
                self._receive_other(kind, payload)
            except InvalidRequest as error:
                self._fail(BusError(f"the responder sent a frame that is not one: {error.message}"))

    def receive_event(self, event: bytes | Claimed, now: float) -> None:
        """Take the event of a data frame."""
        self._heard = now
        self._suspected = None
        if self.outcome is not None:
            return
        self._count += 1
        waiting = self.events if self._doubted is None else self._doubted
        if len(waiting) > WINDOW:
            self._fail(BusError("the responder sent more than the window allows"))
        else:
            waiting.append(event)

    def doubt(self) -> None:
        """The bus was lost for a while, and frames with it, perhaps: events wait until the responder's count fits."""
        if self._doubted is None:
            self._doubted = deque()

    def _receive_other(self, kind: str, payload: bytes) -> None:
        if kind == ACCEPT:
            accept = decode(payload, Accept)
            if accept.hops < self._hops:
                return  # From one that has handed the request over: a cluster may deliver it late.
            self.control, self._hops = accept.control, accept.hops
            if self._cancelling:
                self._send_cancel()
        elif kind == HEARTBEAT:
            self._check(decode(payload, Heartbeat).count)
        elif kind == END:
            end = decode(payload, End)
            self.forgotten = True
            if end.error is not None:
                self.outcome = Failed(error_from(end.error))
            elif self._check(end.count):
                result = bytes(end.result) if end.result else None
                self.outcome = Ended(Claimed(bytes(end.claim)) if end.claim else result)

    def absent(self) -> None:
        """The bus says that nobody listens on the request's subject."""
        if self.outcome is None:
            self.outcome = Failed(Unavailable("no live actor serves this operation"), absent=True)
            self.forgotten = True

    def _check(self, count: int) -> bool:
        if count > self._count:
            self._fail(BusError(f"{count - self._count} frames were lost on the bus"))
        elif self._doubted is not None:
            self.events.extend(self._doubted)
            self._doubted = None
        return count <= self._count

    def take(self, most: int | None = None) -> list[bytes | Claimed]:
        """Return the events that wait (the first ``most`` of them), and give credit for them."""
        count = len(self.events) if most is None else most
        events = [self.events.popleft() for _ in range(count)]
        self._taken += count
        if self._taken - self._credited >= WINDOW // 2 and self.control and self.outcome is None:
            self._credited = self._taken
            self.outgoing.append(encode(Control(received=self._taken)))
        return events

    def cancel(self) -> None:
        """The caller does not want the rest; before the accept frame, the cancel goes out when that one comes."""
        if self.outcome is None:
            self._fail(Cancelled("the caller cancelled the call"))

    def _fail(self, error: AylluError) -> None:
        self.outcome = Failed(error)
        if self.control is None:
            self._cancelling = True
        else:
            self._send_cancel()

    def _send_cancel(self) -> None:
        self.outgoing.append(CANCEL)
        self.forgotten = True

    def tick(self, now: float) -> None:
        """Time has passed."""
        silent = now - self._heard >= SILENCE_SECONDS
        if self._cancelling and silent:
            self.forgotten = True
        if self.outcome is not None:
            return
        if now >= self._deadline:
            self._fail(DeadlineExceeded("the call did not end within its deadline"))
        elif silent and self._suspected is None:
            self._suspected = now
        elif self._suspected is not None and now - self._suspected >= GRACE_SECONDS:
            self._fail(ActorLost("the actor that worked on the call fell silent"))

    @property
    def next_tick(self) -> float:
        """When `tick` has something to do, if nothing comes before."""
        if self._suspected is not None and self.outcome is None:
            return min(self._deadline, self._suspected + GRACE_SECONDS)
        silence = self._heard + SILENCE_SECONDS
        return silence if self.outcome is not None else min(self._deadline, silence)


class Responder:
    """The responder's side.

    Attributes:
        cancelled: why the work must stop: the caller cancelled, is gone, or takes nothing.
        count: how many data frames were sent.
    """

    __slots__ = ("_received", "_stalled_since", "cancelled", "count")

    def __init__(self) -> None:
        self.cancelled: AylluError | None = None
        self.count = 0
        self._received = 0
        self._stalled_since: float | None = None

    def sent(self) -> None:
        """A data frame was published."""
        self.count += 1

    @property
    def may_send(self) -> bool:
        """Whether the window has room for another data frame."""
        return self.count - self._received < WINDOW

    def control(self, payload: bytes) -> None:
        """Take what the caller published to the control subject."""
        try:
            message = decode(payload, Control)
        except InvalidRequest:
            return  # Not ours to answer: the control subject has no reply.
        if message.cancel and self.cancelled is None:
            self.cancelled = Cancelled("the caller cancelled the call")
        if self._received < message.received <= self.count:
            self._received = message.received
            self._stalled_since = None

    def caller_gone(self) -> None:
        """The bus says that nobody listens on the inbox any more."""
        if self.cancelled is None:
            # Whoever hears this is not gone: its connection was lost, and made again later than ours.
            self.cancelled = BusError("the bus lost the caller for a while")

    def heartbeat(self, now: float) -> bytes:
        """Return the payload of a heartbeat; also notices a caller that takes nothing."""
        if self.may_send:
            self._stalled_since = None
        elif self._stalled_since is None:
            self._stalled_since = now
        elif now - self._stalled_since >= STALL_SECONDS and self.cancelled is None:
            self.cancelled = SlowConsumer("the reader of the stream took no events for too long")
        return encode(Heartbeat(self.count))

    def end(self, error: AylluError | None = None, result: bytes | Claimed | None = None) -> bytes:
        """Return the payload of the terminal frame."""
        if error is not None:
            return encode(End(self.count, error.info))
        if isinstance(result, Claimed):
            return encode(End(self.count, claim=msgspec.Raw(result.reference)))
        return encode(End(self.count, result=msgspec.Raw(result) if result else msgspec.UNSET))
