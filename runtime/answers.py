"""Errors as HTTP answers."""

from __future__ import annotations

from math import ceil

from starlette.responses import Response

from ..schemas import AylluError, Unauthenticated, encode


def error_body(error: AylluError) -> bytes:
    """Return the JSON text of an error, in the one shape that every answer uses."""
    return encode({"error": error.info})


def error_response(error: AylluError) -> Response:
    """Return the HTTP answer of an error."""
    headers: dict[str, str] = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    retry_after = error.details.get("retry_after")
    if isinstance(retry_after, int | float):
        headers["Retry-After"] = str(ceil(retry_after))
    return Response(
        error_body(error), error.http_status, headers=headers, media_type="application/json"
    )
