"""The websocket session: frames in, effects out, no socket."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.runtime.session import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    MERGED_BYTES,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    SERVER_ERROR,
    CancelCall,
    Effect,
    FindOperation,
    SendFrame,
    Session,
    StartCall,
)
from ayllu.schemas import OPERATIONS, Cancelled, NotFound, OwnOperation, operation_from

CHAT: dict[str, Any] = {
    "model": "m",
    "dialog": {"message": {"role": "user", "content": "hi"}},
}


def session(max_calls: int = 10) -> Session:
    return Session(OPERATIONS, max_calls=max_calls, max_timeout=100)


def frame(method: str = "models", id_: object = 1, **members: object) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "id": id_, "method": method, **members})


def sent(effect: Effect | None) -> dict[str, Any]:
    assert isinstance(effect, SendFrame)
    answer: dict[str, Any] = msgspec.json.decode(effect.frame)
    assert answer["jsonrpc"] == "2.0"
    return answer


def started(effect: Effect | None) -> StartCall:
    assert isinstance(effect, StartCall)
    return effect


@pytest.mark.requirement("jsonrpc-websocket")
def test_a_call_starts_with_its_payload_model_and_deadline() -> None:
    effect = session().receive(frame("chat_completion", "a", params=CHAT, timeout=7))
    start = started(effect)
    assert (start.key, start.operation.name) == (b'"a"', "chat_completion")
    assert msgspec.json.decode(start.payload) == CHAT
    assert (start.model, start.timeout) == ("m", 7)
    assert started(session().receive(frame())).timeout == OPERATIONS["models"].timeout


@pytest.mark.requirement("stream-flag")
def test_the_stream_flag_chooses_the_streamed_form() -> None:
    flagged = started(session().receive(frame("chat_completion", params={**CHAT, "stream": True})))
    named = started(session().receive(frame("chat_completion.stream", params=CHAT)))
    assert flagged.operation is named.operation is OPERATIONS["chat_completion.stream"]


@pytest.mark.requirement("jsonrpc-websocket")
def test_events_have_contiguous_indexes_and_actor_bytes_are_spliced() -> None:
    state = session()
    key = started(state.receive(frame(id_="x"))).key
    [frame_of_both] = state.event_frames(key, [b'{"a":1}', b"2"])
    assert msgspec.json.decode(frame_of_both) == {
        "jsonrpc": "2.0",
        "method": "event",
        "params": {"id": "x", "index": 0, "events": [{"a": 1}, 2]},
    }
    [frame_of_third] = state.event_frames(key, [b"3"])
    assert msgspec.json.decode(frame_of_third)["params"]["index"] == 2
    assert msgspec.json.decode(state.result_frame(key, None))["result"] == {"count": 3}
    assert state.running == 0


def test_events_that_are_large_together_come_in_several_frames() -> None:
    state = session()
    key = started(state.receive(frame())).key
    half = b'"' + b"x" * (MERGED_BYTES // 2) + b'"'
    frames = [msgspec.json.decode(f)["params"] for f in state.event_frames(key, [half, half, b"1"])]
    assert [(f["index"], len(f["events"])) for f in frames] == [(0, 1), (1, 2)]
    assert list(state.event_frames(key, [])) == []


def test_a_result_is_spliced_and_frees_the_id() -> None:
    state = session()
    for _ in range(2):
        key = started(state.receive(frame())).key
        assert msgspec.json.decode(state.result_frame(key, b'{"a":1}'))["result"] == {"a": 1}


@pytest.mark.requirement("one-error-tree")
def test_a_failure_has_our_error_as_data() -> None:
    state = session()
    key = started(state.receive(frame())).key
    answer = msgspec.json.decode(state.failure_frame(key, NotFound("no", details={"id": 1})))
    assert answer["id"] == 1
    assert answer["error"]["code"] == SERVER_ERROR
    assert answer["error"]["data"] == {"code": "not_found", "message": "no", "details": {"id": 1}}


@pytest.mark.requirement("jsonrpc-cancel")
def test_cancel() -> None:
    state = session()
    key = started(state.receive(frame(id_="a"))).key
    cancel = b'{"jsonrpc":"2.0","method":"$/cancel","params":{"id":"\\u0061"}}'
    assert state.receive(cancel) == CancelCall(key)
    answer = msgspec.json.decode(state.failure_frame(key, Cancelled("c")))
    assert answer["error"]["data"]["code"] == "cancelled"
    assert state.receive(cancel) is None
    assert sent(state.receive(frame("$/cancel", params={})))["error"]["code"] == INVALID_PARAMS


@pytest.mark.requirement("jsonrpc-duplicates-and-batches")
def test_an_id_that_runs_already_is_refused_without_harm_to_the_running_call() -> None:
    state = session()
    started(state.receive(frame(id_=7)))
    answer = sent(state.receive(frame(id_=7)))
    assert (answer["id"], answer["error"]["code"]) == (None, INVALID_REQUEST)
    assert answer["error"]["data"]["details"] == {"id": 7}
    assert state.running == 1


@pytest.mark.requirement("jsonrpc-duplicates-and-batches")
def test_a_batch_is_refused() -> None:
    answer = sent(session().receive(b" [" + frame() + b"]"))
    assert (answer["id"], answer["error"]["code"]) == (None, INVALID_REQUEST)


@pytest.mark.requirement("bad-input")
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", PARSE_ERROR),
        ("{", PARSE_ERROR),
        (b"\xff", PARSE_ERROR),
        ('{"params":' + '{"a":' * 100_000, PARSE_ERROR),
        ("1", INVALID_REQUEST),
        ("{}", INVALID_REQUEST),
        ('{"method":"models","id":1}', INVALID_REQUEST),
        ('{"jsonrpc":"2.0","method":"models"}', INVALID_REQUEST),
        ('{"jsonrpc":"2.0","method":"models","id":null}', INVALID_REQUEST),
        ('{"jsonrpc":"2.0","method":"models","id":{}}', INVALID_REQUEST),
        ('{"jsonrpc":"2.0","method":"models","id":1,"parms":{}}', INVALID_REQUEST),
    ],
)
def test_what_is_no_call_is_answered_without_an_id(text: str | bytes, code: int) -> None:
    answer = sent(session().receive(text))
    assert (answer["id"], answer["error"]["code"]) == (None, code)


@pytest.mark.requirement("bad-input")
@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"method": "nothing"}, METHOD_NOT_FOUND),
        ({"params": []}, INVALID_PARAMS),
        ({"method": "datasets.get", "params": {}}, INVALID_PARAMS),
        ({"method": "datasets.get", "params": {"dataset_id": 1}}, INVALID_PARAMS),
        ({"params": {"x": 1}}, INVALID_PARAMS),
        ({"timeout": 0}, INVALID_PARAMS),
        ({"timeout": 101}, INVALID_PARAMS),
    ],
)
def test_a_call_that_is_wrong_is_answered_under_its_id(members: dict[str, Any], code: int) -> None:
    state = session()
    answer = sent(state.receive(frame(id_="a", **members)))
    assert (answer["id"], answer["error"]["code"]) == ("a", code)
    assert state.running == 0


def test_too_many_calls() -> None:
    state = session(max_calls=1)
    started(state.receive(frame(id_=1)))
    answer = sent(state.receive(frame(id_=2)))
    assert answer["error"]["data"]["code"] == "overloaded"
    assert answer["error"]["data"]["retryable"]


@given(st.binary(max_size=200) | st.text(max_size=200))
@pytest.mark.requirement("bad-input")
def test_any_text_has_an_answer(text: str | bytes) -> None:
    assert isinstance(session().receive(text), SendFrame)


def own_session(max_calls: int = 10) -> Session:
    return Session(
        OPERATIONS, max_calls=max_calls, max_timeout=100, may_be_own=lambda name: name == "own.do"
    )


OWN = operation_from(OwnOperation("own.do", "Own", "unary", timeout=7))


@pytest.mark.requirement("own-actor-called")
def test_a_name_that_may_be_an_own_actor_s_is_looked_for() -> None:
    state = own_session(max_calls=1)
    find = state.receive(frame("own.do", "a", params={"x": 1}))
    assert isinstance(find, FindOperation)
    assert find == FindOperation(b'"a"', "own.do", b'{"x":1}', None)
    # It counts as running: it can be cancelled, and there may not be too many.
    assert state.running == 1
    assert state.receive(frame("$/cancel", None, params={"id": "a"})) == CancelCall(b'"a"')
    busy = state.receive(frame("own.do", "b"))
    assert sent(busy)["error"]["data"]["code"] == "overloaded"
    assert isinstance(busy, SendFrame)
    assert busy.operation == ""
    assert state.found(find, OWN) == StartCall(b'"a"', OWN, b'{"x":1}', None, 7)
    assert state.running == 1
    state.result_frame(b'"a"', b"1")
    assert sent(own_session().receive(frame("own.else")))["error"]["code"] == METHOD_NOT_FOUND


@pytest.mark.requirement("own-actor-called")
def test_what_is_looked_for_and_not_begun_frees_its_id() -> None:
    state = own_session()
    for operation, members, code in (
        (None, {}, METHOD_NOT_FOUND),
        (OWN, {"params": [1]}, INVALID_PARAMS),
        (OWN, {"timeout": 101}, INVALID_PARAMS),
    ):
        find = state.receive(frame("own.do", 1, **members))
        assert isinstance(find, FindOperation)
        answer = sent(state.found(find, operation))
        assert (answer["id"], answer["error"]["code"]) == (1, code)
        assert state.running == 0
