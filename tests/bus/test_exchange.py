"""The exchange machines: fed with frames and times, never with sockets or clocks."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ayllu.bus import exchange
from ayllu.bus.exchange import (
    ACCEPT,
    CANCEL,
    CLAIM,
    DATA,
    END,
    GRACE_SECONDS,
    HEARTBEAT,
    SILENCE_SECONDS,
    STALL_SECONDS,
    WINDOW,
    Accept,
    Caller,
    Claimed,
    Control,
    End,
    Ended,
    Failed,
    Heartbeat,
    Responder,
)
from ayllu.schemas import (
    ActorLost,
    BusError,
    Cancelled,
    DeadlineExceeded,
    NotFound,
    SlowConsumer,
    Unavailable,
    encode,
)

ACCEPTED = encode(Accept("control"))


def caller(*, accepted: bool = True, deadline: float = 1000.0) -> Caller:
    machine = Caller(0.0, deadline=deadline)
    if accepted:
        machine.receive(ACCEPT, ACCEPTED, 0.0)
    return machine


def failure(machine: Caller) -> Failed:
    assert isinstance(machine.outcome, Failed)
    return machine.outcome


@pytest.mark.requirement("share-hand-over")
def test_the_last_actor_of_a_request_that_was_handed_over_is_the_one_to_talk_to() -> None:
    machine = caller()
    machine.receive(ACCEPT, encode(Accept("second", 1)), 0.0)
    # A cluster may deliver the words of two senders in any order.
    machine.receive(ACCEPT, ACCEPTED, 0.0)
    assert machine.control == "second"
    machine.cancel()
    assert machine.outgoing == [CANCEL]


@pytest.mark.requirement("exchange-frames")
def test_events_come_in_order_and_then_the_result() -> None:
    machine, responder = caller(), Responder()
    for event in (b"1", b"2"):
        machine.receive(DATA, event, 1.0)
        responder.sent()
    machine.receive(CLAIM, b"ref", 1.0)
    responder.sent()
    machine.receive(END, responder.end(result=b'{"a":1}'), 2.0)
    assert machine.take() == [b"1", b"2", Claimed(b"ref")]
    assert machine.outcome == Ended(b'{"a":1}')
    assert machine.forgotten
    assert machine.outgoing == []


@pytest.mark.requirement("claim-check")
def test_a_result_that_is_too_large_comes_as_a_reference() -> None:
    machine = caller()
    machine.receive(END, Responder().end(result=Claimed(b'{"claim":"x"}')), 1.0)
    assert machine.outcome == Ended(Claimed(b'{"claim":"x"}'))


@pytest.mark.requirement("exchange-frames")
def test_an_error_of_the_responder_is_the_outcome() -> None:
    machine = caller()
    machine.receive(END, Responder().end(NotFound("no such thing", details={"id": 7})), 1.0)
    error = failure(machine).error
    assert isinstance(error, NotFound)
    assert error.details == {"id": 7}


@pytest.mark.requirement("exchange-lost-frame")
@pytest.mark.parametrize(
    ("kind", "payload"),
    [(HEARTBEAT, encode(Heartbeat(2))), (END, b'{"count":2}')],
)
def test_a_lost_frame_is_noticed(kind: str, payload: bytes) -> None:
    machine = caller()
    machine.receive(DATA, b"1", 1.0)
    machine.receive(kind, payload, 1.0)
    assert isinstance(failure(machine).error, BusError)
    assert machine.take() == [b"1"]


def test_a_heartbeat_that_was_overtaken_by_data_is_no_loss() -> None:
    machine = caller()
    machine.receive(DATA, b"1", 1.0)
    machine.receive(HEARTBEAT, encode(Heartbeat(0)), 1.0)
    assert machine.outcome is None


@pytest.mark.requirement("exchange-frames")
def test_after_the_bus_was_lost_events_wait_for_a_count_that_fits() -> None:
    machine = caller()
    machine.receive(DATA, b"1", 0.0)
    machine.doubt()
    machine.receive(DATA, b"2", 0.0)
    machine.doubt()
    machine.receive(DATA, b"3", 0.0)
    assert list(machine.events) == [b"1"]
    machine.receive(HEARTBEAT, encode(Heartbeat(3)), 0.0)
    machine.receive(DATA, b"4", 0.0)
    assert list(machine.events) == [b"1", b"2", b"3", b"4"]


@pytest.mark.requirement("exchange-frames")
@pytest.mark.parametrize(
    ("kind", "payload"), [(HEARTBEAT, encode(Heartbeat(4))), (END, encode(End(4)))]
)
def test_nothing_is_told_that_came_behind_a_lost_frame(kind: str, payload: bytes) -> None:
    machine = caller()
    machine.receive(DATA, b"1", 0.0)
    machine.doubt()
    for event in (b"3", b"4"):
        machine.receive(DATA, event, 0.0)
    machine.receive(kind, payload, 0.0)
    assert list(machine.events) == [b"1"]
    assert isinstance(failure(machine).error, BusError)


@pytest.mark.requirement("exchange-dead-responder")
def test_a_silent_responder_is_suspected_and_then_given_up() -> None:
    machine = caller()
    machine.receive(HEARTBEAT, encode(Heartbeat(0)), 10.0)
    assert machine.next_tick == 10.0 + SILENCE_SECONDS
    machine.tick(machine.next_tick)
    assert machine.outcome is None
    machine.tick(machine.next_tick)
    assert isinstance(failure(machine).error, ActorLost)
    assert failure(machine).error.retryable
    assert SILENCE_SECONDS + GRACE_SECONDS < 5


def test_a_frame_clears_the_suspicion() -> None:
    machine = caller()
    machine.tick(SILENCE_SECONDS)
    machine.receive(HEARTBEAT, encode(Heartbeat(0)), SILENCE_SECONDS + 0.1)
    machine.tick(SILENCE_SECONDS + GRACE_SECONDS)
    assert machine.outcome is None


@pytest.mark.requirement("exchange-absent-responder")
def test_an_absent_responder_is_told_apart() -> None:
    machine = caller(accepted=False)
    machine.absent()
    assert failure(machine).absent
    assert isinstance(failure(machine).error, Unavailable)
    assert machine.forgotten


@pytest.mark.requirement("deadline-everywhere")
def test_the_deadline_cancels_the_work() -> None:
    machine = caller(deadline=3.0)
    assert machine.next_tick == 3.0
    machine.tick(3.0)
    assert isinstance(failure(machine).error, DeadlineExceeded)
    assert machine.outgoing == [CANCEL]


@pytest.mark.requirement("exchange-cancel")
def test_a_cancel_goes_to_the_control_subject() -> None:
    machine = caller()
    machine.cancel()
    machine.cancel()
    assert isinstance(failure(machine).error, Cancelled)
    assert (machine.control, machine.outgoing) == ("control", [CANCEL])
    assert machine.forgotten


@pytest.mark.requirement("exchange-cancel")
def test_a_cancel_before_the_accept_frame_goes_out_when_that_one_comes() -> None:
    machine = caller(accepted=False)
    machine.cancel()
    assert machine.outgoing == []
    assert not machine.forgotten
    machine.receive(DATA, b"late", 0.5)
    machine.receive(ACCEPT, ACCEPTED, 1.0)
    assert machine.outgoing == [CANCEL]
    assert machine.forgotten
    assert machine.take() == []


def test_a_cancelled_call_is_forgotten_when_no_accept_frame_comes() -> None:
    machine = caller(accepted=False)
    machine.cancel()
    assert machine.next_tick == SILENCE_SECONDS
    machine.tick(machine.next_tick)
    assert machine.forgotten


@pytest.mark.parametrize(
    ("kind", "payload"), [(ACCEPT, b"{}"), (END, b"x"), (HEARTBEAT, b'{"count":"a"}')]
)
def test_a_malformed_frame_fails_the_call(kind: str, payload: bytes) -> None:
    machine = caller()
    machine.receive(kind, payload, 1.0)
    assert isinstance(failure(machine).error, BusError)


def test_a_frame_of_a_later_version_is_skipped() -> None:
    machine = caller()
    machine.receive("z", b"?", 1.0)
    assert machine.outcome is None


def test_what_comes_after_the_end_changes_nothing() -> None:
    machine = caller()
    machine.receive(END, Responder().end(), 1.0)
    machine.receive(DATA, b"1", 1.0)
    machine.receive("?", b"", 1.0)
    machine.absent()
    machine.cancel()
    machine.tick(5000.0)
    assert machine.outcome == Ended(None)
    assert machine.take() == []


@pytest.mark.requirement("exchange-window")
def test_a_responder_that_ignores_the_window_fails_the_call() -> None:
    machine = caller()
    for _ in range(WINDOW + 2):
        machine.receive(DATA, b"1", 1.0)
    assert isinstance(failure(machine).error, BusError)


@pytest.mark.requirement("exchange-window")
def test_a_reader_that_takes_nothing_is_given_up() -> None:
    responder = Responder()
    for _ in range(WINDOW):
        responder.sent()
    assert not responder.may_send
    responder.heartbeat(1.0)
    responder.heartbeat(STALL_SECONDS)
    assert responder.cancelled is None
    responder.heartbeat(1.0 + STALL_SECONDS)
    assert isinstance(responder.cancelled, SlowConsumer)
    responder.caller_gone()
    assert isinstance(responder.cancelled, SlowConsumer)


@pytest.mark.requirement("exchange-window")
def test_credit_lets_the_responder_go_on() -> None:
    responder = Responder()
    for _ in range(WINDOW):
        responder.sent()
    responder.heartbeat(1.0)
    responder.control(encode(Control(received=1)))
    assert responder.may_send
    responder.heartbeat(1.0 + STALL_SECONDS)
    assert responder.cancelled is None


@pytest.mark.parametrize("payload", [b"", b"[]", encode(Control(received=5))])
def test_a_control_message_that_makes_no_sense_changes_nothing(payload: bytes) -> None:
    responder = Responder()
    responder.control(payload)
    assert responder.cancelled is None
    assert responder.may_send


@pytest.mark.requirement("exchange-dead-caller")
def test_a_caller_that_is_gone_cancels_the_work() -> None:
    responder = Responder()
    responder.caller_gone()
    assert isinstance(responder.cancelled, BusError)
    responder.control(CANCEL)
    assert responder.cancelled.retryable


class Exchange(RuleBasedStateMachine):
    """Both machines, over a link that keeps the order, loses nothing and delays at will."""

    @initialize()
    def begin(self) -> None:
        self.caller = Caller(0.0, deadline=1e9)
        self.responder = Responder()
        self.now = 0.0
        self.to_caller: list[tuple[str, bytes]] = [(ACCEPT, ACCEPTED)]
        self.to_responder: list[bytes] = []
        self.sent: list[bytes] = []
        self.taken: list[bytes | Claimed] = []
        self.ended = self.cancelled = False

    @precondition(lambda self: not self.ended and self.responder.may_send)
    @rule(count=st.integers(1, WINDOW))
    def send(self, count: int) -> None:
        for _ in range(count):
            if self.responder.may_send:
                payload = b"%d" % len(self.sent)
                self.sent.append(payload)
                self.to_caller.append((DATA, payload))
                self.responder.sent()

    @rule()
    def beat(self) -> None:
        if not self.ended:
            self.to_caller.append((HEARTBEAT, self.responder.heartbeat(self.now)))

    @precondition(lambda self: not self.ended)
    @rule()
    def end(self) -> None:
        self.ended = True
        self.to_caller.append((END, self.responder.end(self.responder.cancelled)))

    @rule(count=st.integers(1, 2 * WINDOW))
    def deliver(self, count: int) -> None:
        for kind, payload in self.to_caller[:count]:
            self.caller.receive(kind, payload, self.now)
        del self.to_caller[:count]
        self.collect()

    @rule()
    def deliver_control(self) -> None:
        for payload in self.to_responder:
            self.responder.control(payload)
        self.to_responder.clear()

    @rule()
    def take(self) -> None:
        self.taken += self.caller.take()
        self.collect()

    @rule()
    def cancel(self) -> None:
        self.cancelled = self.cancelled or self.caller.outcome is None
        self.caller.cancel()
        self.collect()

    def collect(self) -> None:
        if self.caller.control is not None:
            self.to_responder += self.caller.outgoing
            self.caller.outgoing.clear()

    @invariant()
    def what_was_taken_is_what_was_sent(self) -> None:
        if hasattr(self, "caller"):
            assert self.taken == self.sent[: len(self.taken)]
            assert len(self.caller.events) <= WINDOW

    @invariant()
    def only_a_cancel_fails_it(self) -> None:
        if hasattr(self, "caller") and isinstance(self.caller.outcome, Failed):
            assert self.cancelled

    def teardown(self) -> None:
        """In the end everything that was sent is taken, or both sides know of the cancel."""
        if not hasattr(self, "caller"):
            return
        for _ in range(3):
            self.deliver(len(self.to_caller) + 1)
            self.deliver_control()
            if not self.ended:
                self.end()
            self.take()
        if self.cancelled:
            assert isinstance(failure(self.caller).error, Cancelled)
        else:
            assert self.taken == self.sent
            assert isinstance(self.caller.outcome, Ended)


TestExchange = pytest.mark.requirement("exchange-frames")(Exchange.TestCase)
Exchange.TestCase.settings = settings(max_examples=150, stateful_step_count=30)


def test_the_module_names_each_kind_of_frame_once() -> None:
    kinds = [exchange.ACCEPT, exchange.DATA, exchange.CLAIM, exchange.HEARTBEAT, exchange.END]
    assert len(set(kinds)) == len(kinds)
