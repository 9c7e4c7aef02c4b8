"""What follows a call from process to process: its deadline and its place in a trace."""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallContext:
    """The call that is being worked on.

    Attributes:
        deadline: when it must end, on this process's event-loop clock.
        traceparent: the W3C trace context.
        operation: its name.
        idempotency_key: the same for each try of one call whose caller may have died over it; empty where there is none.
    """

    deadline: float
    traceparent: str
    operation: str = ""
    idempotency_key: str = ""


_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)

current_call: ContextVar[CallContext | None] = ContextVar("ayllu_current_call", default=None)


def new_traceparent() -> str:
    """Return a W3C ``traceparent`` that starts a new trace (https://www.w3.org/TR/trace-context/)."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def is_traceparent(text: str) -> bool:
    """Tell whether a text is a ``traceparent`` that the W3C's rules allow; any other starts a new trace."""
    return _TRACEPARENT.fullmatch(text) is not None


def trace_id_of(traceparent: str) -> str:
    """Return the trace id of a ``traceparent``, empty if it is malformed."""
    return traceparent.split("-")[1] if is_traceparent(traceparent) else ""


def child_traceparent(parent: str) -> str:
    """Return the ``traceparent`` of a call made while working on another; a malformed parent starts a new trace."""
    if not is_traceparent(parent):
        return new_traceparent()
    parts = parent.split("-")
    return f"{parts[0]}-{parts[1]}-{secrets.token_hex(8)}-{parts[3]}"
