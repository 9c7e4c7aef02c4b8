"""The client's side of the websocket protocol: frames in, states out, no socket."""

from __future__ import annotations

import json

import msgspec
import pytest

from ayllu.client.protocol import MAX_UNREAD, CallState, ClientSession
from ayllu.client.stack import websocket_url
from ayllu.schemas import BusError, Cancelled, InvalidRequest, NotFound, RemoteError, SlowConsumer


def event(call: int, index: int, *events: object) -> bytes:
    params = {"id": call, "index": index, "events": events}
    return msgspec.json.encode({"jsonrpc": "2.0", "method": "event", "params": params})


def response(call: int, **members: object) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "id": call, **members})


def started() -> tuple[ClientSession, int, CallState]:
    session = ClientSession()
    call, state = session.start("models", b"{}", 9.0)
    session.outgoing.clear()
    return session, call, state


def test_a_call_is_a_frame() -> None:
    session = ClientSession()
    session.start("datasets.get", b'{"dataset_id":"x"}', 5.0)
    [first] = (json.loads(frame) for frame in session.outgoing)
    assert first == {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "datasets.get",
        "params": {"dataset_id": "x"},
        "timeout": 5.0,
    }


def test_events_and_the_result() -> None:
    session, call, state = started()
    assert session.receive(event(call, 0, {"a": 1}, 2)) is state
    assert session.receive(event(call, 2, 3)) is state
    assert list(state.events) == [b'{"a":1}', b"2", b"3"]
    session.receive(response(call, result={"count": 3}))
    assert (state.ended, state.error, state.result) == (True, None, b'{"count":3}')
    assert session.running == 0


@pytest.mark.requirement("one-error-tree")
def test_an_error_is_the_exception_that_it_stands_for() -> None:
    session, call, state = started()
    data = {"code": "not_found", "message": "no", "details": {"id": 1}}
    session.receive(response(call, error={"code": -32000, "message": "no", "data": data}))
    assert isinstance(state.error, NotFound)
    assert state.error.details == {"id": 1}


def test_an_error_of_another_server_is_kept_as_it_came() -> None:
    session, call, state = started()
    session.receive(response(call, error={"code": -32601, "message": "what?"}))
    assert isinstance(state.error, RemoteError)
    assert state.error.message == "what?"


def test_a_gap_in_the_indexes_fails_the_call_and_cancels_it() -> None:
    session, call, state = started()
    session.receive(event(call, 1, "x"))
    assert isinstance(state.error, BusError)
    assert json.loads(session.outgoing[0]) == {
        "jsonrpc": "2.0",
        "method": "$/cancel",
        "params": {"id": call},
    }
    assert session.receive(event(call, 2, "y")) is None


def test_a_reader_that_falls_far_behind_is_cut_off_and_delays_nobody() -> None:
    session, call, state = started()
    session.receive(event(call, 0, *range(MAX_UNREAD)))
    assert not state.ended
    session.receive(event(call, MAX_UNREAD, "one more"))
    assert isinstance(state.error, SlowConsumer)


@pytest.mark.requirement("jsonrpc-cancel")
def test_cancel() -> None:
    session, call, state = started()
    session.cancel(call)
    session.cancel(call)
    assert isinstance(state.error, Cancelled)
    assert len(session.outgoing) == 1
    assert session.receive(response(call, result=1)) is None


def test_a_lost_connection_ends_all_calls() -> None:
    session, _, state = started()
    _, other = session.start("models", b"{}", 9.0)
    assert session.lose(BusError("gone")) == [state, other]
    assert isinstance(other.error, BusError)
    assert (session.running, session.outgoing) == (0, [])


@pytest.mark.parametrize("frame", [b"", b"[]", b"\xff", b'{"id":"x"}'])
def test_what_is_no_frame_is_refused(frame: bytes) -> None:
    with pytest.raises(InvalidRequest):
        ClientSession().receive(frame)


def test_a_frame_of_no_call_of_ours_changes_nothing() -> None:
    session, _, state = started()
    for frame in (
        event(99, 0, 1),
        response(99, result=1),
        b'{"id":null,"error":{"code":1,"message":"m"}}',
    ):
        assert session.receive(frame) is None
    assert not state.ended


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:1", "ws://127.0.0.1:1/ws"),
        ("https://ayllu.example/", "wss://ayllu.example/ws"),
        ("ws://127.0.0.1:1/ws", "ws://127.0.0.1:1/ws"),
    ],
)
def test_the_address_of_a_gateway_leads_to_its_websocket(url: str, expected: str) -> None:
    assert websocket_url(url) == expected
