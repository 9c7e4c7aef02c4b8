"""What a server's errors mean to whoever asked, and what of their text may be told. Pure."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from ....schemas import (
    AylluError,
    ContextLengthExceeded,
    EngineError,
    InvalidRequest,
    Overloaded,
    TooLarge,
)

QUOTED = 300
"""Characters of a server's words that are told."""
LONGEST_RETRY_AFTER = 3600.0
RETRY_AFTER = "retry_after"
"""The detail of an error that says after how many seconds another try makes sense."""
_HIDDEN = "***"
_TOO_LONG = ("context length", "context size", "context window", "maximum model length")
"""How OpenAI, vLLM, SGLang and llama.cpp say that a prompt does not fit."""


class Quote:
    """Quotes what a server said: cut, and without what nobody else may know.

    Args:
        hidden: the key, and the server's address as it may be written.
    """

    def __init__(self, hidden: Sequence[str] = ()) -> None:
        # The longest first: a part of one may be another.
        self._hidden = sorted(filter(None, hidden), key=len, reverse=True)

    def __call__(self, said: object) -> str:
        """Return the quoted text, on one line."""
        text = str(said)
        for secret in self._hidden:
            text = text.replace(secret, _HIDDEN)
        text = " ".join(text.split())
        return text if len(text) <= QUOTED else f"{text[:QUOTED]}... (cut)"


def status_error(status: int, body: bytes, quote: Quote, retry_after: float | None) -> AylluError:
    """Return what an answer means whose status is not 200."""
    if status in (401, 403):
        # Its text may quote a part of the key.
        message = f"the server of the model refuses our key (status {status})"
        return EngineError(message, details={"status": status})
    return _error(status, _read(body), quote, retry_after)


def event_error(error: object, quote: Quote) -> AylluError:
    """Return what an error object within a stream means."""
    return _error(None, {"error": error}, quote, None)


def retry_after_of(value: str, now: float | None = None) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for; it gives them, or a date. None if it says nothing.

    Args:
        value: of the header.
        now: the time, in seconds since 1970.
    """
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = date.timestamp() - (time.time() if now is None else now)
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER) if math.isfinite(seconds) else None


def _read(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return body.decode(errors="replace")


def _error(status: int | None, said: Any, quote: Quote, retry_after: float | None) -> AylluError:
    """Return the error; servers say ``{"error": {...}}``, or the inner object alone, or some text."""
    if isinstance(said, dict) and said.get("error"):
        said = said["error"]
    names = text = ""
    if isinstance(said, dict):
        names = f"{said.get('code')} {said.get('type')}".lower()
        text = quote(said.get("message") or said.get("detail") or "")
    else:
        text = quote(said)
    status = status or _status(names)
    if _is_too_long(status, names, text):
        return ContextLengthExceeded(f"the prompt does not fit the model's context: {text}")
    if status in (400, 422):
        return InvalidRequest(f"the server of the model refuses the request: {text}")
    if status == 413:
        return TooLarge(f"the request is too large for the server of the model: {text}")
    if status == 429 or (status == 503 and retry_after is not None):
        details = {} if retry_after is None else {RETRY_AFTER: retry_after}
        return Overloaded(f"the server of the model is overloaded: {text}", details=details)
    if status == 404:
        return EngineError(f"the server does not have the model, or cannot do this: {text}")
    transient = status == 408 or status >= 500
    what = "failed" if transient else "refuses what is asked of it"
    message = f"the server of the model {what} (status {status}): {text}"
    return EngineError(message, retryable=transient)


def _status(names: str) -> int:
    """Return the status that the code or type of an error within a stream amounts to."""
    code = names.partition(" ")[0]
    if code.isdecimal() and len(code) == 3:
        return int(code)
    if "rate_limit" in names or "overloaded" in names:
        return 429
    return 400 if "invalid_request" in names or "badrequest" in names else 500


def _is_too_long(status: int, names: str, text: str) -> bool:
    if "context_length_exceeded" in names or "exceed_context_size" in names:
        return True
    return status in (400, 413, 422) and any(words in text.lower() for words in _TOO_LONG)
