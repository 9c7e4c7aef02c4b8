"""Errors as HTTP answers."""

from __future__ import annotations

from math import ceil

from starlette.responses import Response

from ..schemas import AylluError, Overloaded, Unauthenticated, encode
from .openai.errors import PREFIX, openai_error_body

RETRY_AFTER = 1.0
"""When a client may come back that was turned away for want of capacity, in seconds, where the error does not say it."""
LONGEST_RETRY_AFTER = 3600.0


def error_body(error: AylluError) -> bytes:
    """Return the JSON text of an error, in the one shape that every answer of ours uses."""
    return encode({"error": error.info})


def error_response(error: AylluError, path: str = "") -> Response:
    """Return the HTTP answer of an error.

    Args:
        error: what went wrong.
        path: that of the request; errors of OpenAI's protocol have OpenAI's shape.
    """
    headers = retry_headers(error)
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    body = error_body(error)
    if path.startswith(PREFIX):
        body = openai_error_body(error)
        # The official clients would retry by the status alone, and so what can only fail again.
        headers["x-should-retry"] = "true" if error.retryable else "false"
    return Response(body, error.http_status, headers=headers, media_type="application/json")


def retry_headers(error: AylluError) -> dict[str, str]:
    """Return the header that says when to come back, where that is known. Actors of others may say anything."""
    hint = error.details.get("retry_after")
    if isinstance(hint, bool) or not isinstance(hint, int | float):
        if not isinstance(error, Overloaded):
            return {}
        hint = RETRY_AFTER
    return {"Retry-After": str(ceil(min(max(hint, 0), LONGEST_RETRY_AFTER)))}
