"""One tree of errors, with stable codes that survive the wire."""

from __future__ import annotations

import pytest

from ayllu import schemas as s

# Code: HTTP status, retryable. Clients rely on these: a change here is a change of the protocol.
CODES: dict[str, tuple[int, bool]] = {
    "internal": (500, False),
    "invalid_request": (400, False),
    "context_length_exceeded": (400, False),
    "unsupported": (400, False),
    "too_large": (413, False),
    "unauthenticated": (401, False),
    "permission_denied": (403, False),
    "not_found": (404, False),
    "model_not_found": (404, False),
    "method_not_found": (404, False),
    "method_not_allowed": (405, False),
    "conflict": (409, False),
    "cancelled": (499, False),
    "deadline_exceeded": (504, True),
    "slow_consumer": (503, True),
    "overloaded": (429, True),
    "step_limit_exceeded": (422, False),
    "budget_exceeded": (422, False),
    "unavailable": (503, True),
    "actor_lost": (503, True),
    "bus_error": (503, True),
    "engine_error": (500, False),
    "engine_dead": (503, True),
}


@pytest.mark.requirement("error-codes")
def test_the_codes_are_stable() -> None:
    found = {code: (cls.http_status, cls.retryable) for code, cls in s.error_codes().items()}
    assert found == CODES


@pytest.mark.requirement("error-codes")
@pytest.mark.parametrize("code", CODES)
def test_an_error_survives_the_wire(code: str) -> None:
    error = s.error_codes()[code]("what happened", details={"served": ["m"]})
    wire = s.encode(error.info)
    back = s.error_from(s.decode(wire, s.ErrorInfo))
    assert type(back) is type(error)
    assert back.info == error.info
    assert str(back) == "what happened"


@pytest.mark.requirement("error-codes")
def test_a_call_can_say_whether_a_retry_helps() -> None:
    assert s.Conflict("x", retryable=True).info.retryable
    assert not s.Overloaded("x", retryable=False).info.retryable
    assert not s.error_from(s.ErrorInfo(code="overloaded", message="x", retryable=False)).retryable


@pytest.mark.requirement("error-codes")
def test_an_unknown_code_is_kept_as_it_came() -> None:
    info = s.ErrorInfo(code="of_tomorrow", message="x", retryable=True, details={"a": 1})
    error = s.error_from(info)
    assert isinstance(error, s.RemoteError)
    assert error.info == info
    assert (error.retryable, error.details) == (True, {"a": 1})


def test_a_bare_error_is_an_internal_one() -> None:
    assert type(s.error_from(s.AylluError("x").info)) is s.InternalError
    assert s.AylluError("x").details == {}
