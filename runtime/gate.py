"""The gateway's gate: which requests come in (`Door`), and which calls their callers may make (`Gate`)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from ..schemas import AylluError, Operation, PermissionDenied, Unavailable
from .answers import error_response
from .auth import Caller, caller_of, host_allowed, origin_allowed, presented_token
from .config import GatewayConfig
from .limits import CallRate, CallSlots
from .metrics import UNKNOWN, Metrics

log = logging.getLogger(__name__)

FULL = "full"
"""What the state of a connection says that came when there were enough already."""
RETRY_AFTER = 1.0
"""When a client that was turned away because there were too many connections may come back, in seconds."""


class Gate:
    """Knows callers by their tokens, or by their addresses where none are configured, and counts their calls.

    Args:
        config: tokens and limits.
        clock: a monotonic clock, in seconds.
        now: the time of day, by which tokens expire.
    """

    def __init__(
        self,
        config: GatewayConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._tokens = config.tokens
        self._slots = CallSlots(config.max_calls_per_caller)
        self._rate = CallRate(config.calls_per_second, clock) if config.calls_per_second else None
        self._now = now

    def caller_of(self, scope: Scope) -> Caller:
        """Return who sent a request, or opened a connection.

        Raises:
            Unauthenticated: tokens are configured, and none that is valid came with it.
        """
        if not self._tokens:
            client = scope.get("client")
            return Caller(client[0] if client else "")
        authorization = Headers(scope=scope).get("authorization")
        presented = presented_token(authorization, scope.get("subprotocols", ()))
        return caller_of(self._tokens, presented, self._now())

    def seconds_left(self, caller: Caller) -> float:
        """Return for how long a caller's token is still valid."""
        if caller.expires is None:
            return math.inf
        return (caller.expires - self._now()).total_seconds()

    @contextmanager
    def admit(self, caller: Caller, operation: Operation) -> Iterator[None]:
        """Count a call as running until the end of the block.

        Raises:
            Unauthenticated: the caller's token has expired.
            PermissionDenied: it does not allow this API.
            Overloaded: the caller calls too often, or too many of its calls run.
        """
        caller.check(operation, self._now())
        if self._rate is not None:
            self._rate.take(caller.name)
        with self._slots.hold(caller.name):
            yield


class Door:
    """Turns away what must not come in, before anything of it is read (ASGI)."""

    def __init__(self, app: ASGIApp, config: GatewayConfig, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        if config.allowed_origins:
            app = CORSMiddleware(
                app,
                allow_origins=config.allowed_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["Authorization", "Content-Type", "Ayllu-Timeout", "traceparent"],
                expose_headers=["Retry-After", "traceparent"],
            )
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it in."""
        try:
            self.check(scope)
        except AylluError as error:
            self._metrics.refused(UNKNOWN, error.code)
            response = error_response(error, scope["path"])
            response.headers["Connection"] = "close"
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def check(self, scope: Scope) -> None:
        """Refuse what must not come in.

        Raises:
            Unavailable: there are too many connections.
            PermissionDenied: the request is for another host, or comes from a page of another origin.
        """
        if scope.get("state", {}).get(FULL):
            raise Unavailable(
                "the gateway has as many connections as it may",
                details={"retry_after": RETRY_AFTER},
            )
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not host_allowed(host, self._config.allowed_hosts):
            raise PermissionDenied("this host is not served here; see gateway.allowed_hosts")
        if not origin_allowed(headers.get("origin"), host, self._config.allowed_origins):
            raise PermissionDenied("pages of this origin may not call; see gateway.allowed_origins")
