"""Structured logs on stderr: a line a record, as text or as JSON, with the request that it belongs to.

The request id is the trace id of the W3C ``traceparent`` that travels with a call, so that one search finds a call in the
gateway and in the actors that worked on it. Payloads, tokens and credentials are never logged.
"""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

from ..bus.context import current_call, trace_id_of
from ..schemas import InvalidRequest, encode

LogFormat = Literal["text", "json"]
LOG_FORMATS: Final[tuple[str, ...]] = get_args(LogFormat)
LOG_FORMAT_VARIABLE = "AYLLU_LOG_FORMAT"
"""Which format, where the command line says nothing; processes hand it on to their children."""

CALL = "call"
"""The attribute of a log record that has further fields of a call: ``extra={CALL: {...}}``."""

forwarded_call: ContextVar[dict[str, Any] | None] = ContextVar("ayllu_forwarded_call", default=None)
"""In a gateway: request id and operation of the call that a task forwards."""


def call_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a record says of the call that it belongs to; empty if it belongs to none."""
    given: dict[str, Any] | None = getattr(record, CALL, None)
    if given is not None:
        return given
    context = current_call.get()
    if context is not None:
        return {
            "request_id": trace_id_of(context.traceparent),
            "operation": context.operation,
        }
    return forwarded_call.get() or {}


def _time_of(record: logging.LogRecord) -> str:
    time = datetime.fromtimestamp(record.created, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """A record as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields: dict[str, Any] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **call_fields(record),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        # What a lone surrogate or another oddity in a message would break is replaced.
        text = {
            key: value.encode(errors="replace").decode() if isinstance(value, str) else value
            for key, value in fields.items()
        }
        return encode(text).decode()


class TextFormatter(logging.Formatter):
    """A record as a line for people; line breaks in messages are escaped, so that no message can pretend to be two."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a traceback on lines of its own."""
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        request = call_fields(record).get("request_id")
        end = f" [{request}]" if request else ""
        line = f"{_time_of(record)} {record.levelname} {record.name}: {message}{end}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure_logs(format_: str, *, verbose: bool = False) -> None:
    """Send all logs of this process to stderr in a format of `LOG_FORMATS`.

    Raises:
        InvalidRequest: there is no such format.
    """
    if format_ not in LOG_FORMATS:
        raise InvalidRequest(f"there is no log format {format_!r}: {', '.join(LOG_FORMATS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format_ == "json" else TextFormatter())
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True
    )
