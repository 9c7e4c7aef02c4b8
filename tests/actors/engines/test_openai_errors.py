"""What servers' errors mean, in the forms in which servers give them."""

from __future__ import annotations

import json
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.actors.engines.openai.errors import (
    QUOTED,
    Quote,
    event_error,
    retry_after_of,
    status_error,
)
from ayllu.schemas import (
    AylluError,
    ContextLengthExceeded,
    EngineError,
    InvalidRequest,
    Overloaded,
    TooLarge,
)

OPENAI = {
    "error": {
        "message": "This model's maximum context length is 8192 tokens.",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
    }
}
LLAMA_CPP = {
    "error": {
        "code": 400,
        "message": "request (9412 tokens) exceeds the available context size",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 9412,
        "n_ctx": 8192,
    }
}
VLLM = {
    "object": "error",
    "message": "The decoder prompt (length 20) is longer than the maximum model length of 10.",
    "type": "BadRequestError",
    "code": 400,
}
SGLANG = {"message": "The input (20 tokens) is longer than the model's context length (10 tokens)."}


def status(code: int, body: object, retry_after: float | None = None) -> AylluError:
    written = body if isinstance(body, bytes) else json.dumps(body).encode()
    return status_error(code, written, Quote(), retry_after)


@pytest.mark.requirement("upstream-errors")
@pytest.mark.parametrize("body", [OPENAI, LLAMA_CPP, VLLM, SGLANG])
def test_a_prompt_that_does_not_fit_is_told_from_other_refusals(body: Any) -> None:
    assert type(status(400, body)) is ContextLengthExceeded


@pytest.mark.requirement("upstream-errors")
@pytest.mark.parametrize(
    ("code", "body", "error", "retryable"),
    [
        (400, {"error": {"message": "bad"}}, InvalidRequest, False),
        (422, {"detail": [{"msg": "bad"}]}, InvalidRequest, False),
        (413, b"<html>bad</html>", TooLarge, False),
        (404, {"error": "bad"}, EngineError, False),
        (402, {"error": {"message": "bad"}}, EngineError, False),
        (408, "bad", EngineError, True),
        (429, {"message": "bad"}, Overloaded, True),
        (500, {"error": {"message": "bad, beyond the context length"}}, EngineError, True),
        (503, {"error": {"message": "bad"}}, EngineError, True),
        (529, b"bad", EngineError, True),
    ],
)
def test_what_a_status_means(
    code: int, body: object, error: type[AylluError], retryable: bool
) -> None:
    found = status(code, body)
    assert (type(found), found.retryable) == (error, retryable)
    assert "bad" in found.message


@pytest.mark.requirement("upstream-errors")
@pytest.mark.parametrize(
    ("body", "error", "retryable"),
    [
        ({"message": "x", "code": 400}, InvalidRequest, False),
        ({"message": "x", "type": "invalid_request_error", "code": None}, InvalidRequest, False),
        ({"message": "x", "code": "rate_limit_exceeded"}, Overloaded, True),
        ({"message": "x", "type": "overloaded_error"}, Overloaded, True),
        ({"message": "x", "type": "server_error"}, EngineError, True),
        ("x", EngineError, True),
        (OPENAI["error"], ContextLengthExceeded, False),
    ],
)
def test_what_an_error_within_a_stream_means(
    body: object, error: type[AylluError], retryable: bool
) -> None:
    found = event_error(body, Quote())
    assert (type(found), found.retryable) == (error, retryable)


@pytest.mark.requirement("upstream-errors")
def test_a_server_that_is_away_for_a_told_time_is_overloaded() -> None:
    found = status(503, "bad", 7.0)
    assert type(found) is Overloaded
    assert found.details == {"retry_after": 7.0}
    assert status(429, "bad").details == {}


@pytest.mark.requirement("upstream-errors")
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("99999", 3600.0),
        (formatdate(1010, usegmt=True), 10.0),
        (formatdate(990, usegmt=True), 0.0),
        ("nan", None),
        ("", None),
        ("soon", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert retry_after_of(value, now=1000.0) == seconds


@given(st.text(max_size=50))
@pytest.mark.requirement("upstream-errors")
def test_any_retry_after_is_understood_or_ignored(value: str) -> None:
    found = retry_after_of(value)
    assert found is None or 0 <= found <= 3600


@given(st.integers(300, 600), st.binary(max_size=100))
@pytest.mark.requirement("upstream-errors")
def test_any_refusal_is_an_error(code: int, body: bytes) -> None:
    assert isinstance(status_error(code, body, Quote(), None), AylluError)


@pytest.mark.requirement("upstream-key")
def test_quotes_hide_and_cut() -> None:
    quote = Quote(["sk-1", "http://h.example:1/v1", "h.example:1", "", "h.example"])
    assert quote("a  sk-1\n b") == "a *** b"
    assert quote("http://h.example:1/v1/models or h.example") == "***/models or ***"
    said = quote("x" * (QUOTED - 2) + "sk-1")
    assert said.startswith("x" * (QUOTED - 2) + "**")
    assert "sk" not in said
    assert len(said) < QUOTED + 10
