"""What follows a call from process to process: its deadline and its place in a trace."""

from __future__ import annotations

import secrets
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallContext:
    """The call that is being worked on.

    Attributes:
        deadline: when it must end, on this process's event-loop clock.
        traceparent: the W3C trace context.
    """

    deadline: float
    traceparent: str


current_call: ContextVar[CallContext | None] = ContextVar("ayllu_current_call", default=None)


def new_traceparent() -> str:
    """Return a W3C ``traceparent`` that starts a new trace (https://www.w3.org/TR/trace-context/)."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def child_traceparent(parent: str) -> str:
    """Return the ``traceparent`` of a call made while working on another; a malformed parent starts a new trace."""
    parts = parent.split("-")
    if len(parts) != 4 or [len(part) for part in parts] != [2, 32, 16, 2]:
        return new_traceparent()
    return f"{parts[0]}-{parts[1]}-{secrets.token_hex(8)}-{parts[3]}"
