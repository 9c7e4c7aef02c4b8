"""Errors in OpenAI's shape. Official clients choose their exception by the HTTP status, which is that of our code."""

from __future__ import annotations

from types import MappingProxyType

import msgspec

from ...schemas import AylluError, InvalidRequest, Overloaded, Unauthenticated, encode

PREFIX = "/v1/"
"""What the paths of OpenAI's protocol begin with."""
PARAM = "param"
"""Under which of an error's details the name of the request's field stands."""

_TYPES = MappingProxyType(
    {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
)
_CODES = MappingProxyType(
    {Unauthenticated.code: "invalid_api_key", Overloaded.code: "rate_limit_exceeded"}
)
"""Codes that OpenAI's clients know by another name; all others are ours."""


class _Error(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str


def refusal(param: str, message: str) -> InvalidRequest:
    """Return the error that refuses a request for one of its fields."""
    return InvalidRequest(f"{param}: {message}", details={PARAM: param})


def openai_error_body(error: AylluError) -> bytes:
    """Return the JSON text of an error in OpenAI's shape."""
    info, param = error.info, error.details.get(PARAM)
    default = "server_error" if error.http_status >= 499 else "invalid_request_error"
    told = _Error(
        message=info.message,
        type=_TYPES.get(error.http_status, default),
        param=param if isinstance(param, str) else None,
        code=_CODES.get(info.code, info.code),
    )
    return encode({"error": told})
