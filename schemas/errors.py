"""The one tree of errors: what a caller may see, as an exception in Python and as an object on the wire.

Every error has a stable ``code``, a message for people, whether a retry of the same call may succeed, and details.
Cancellation by the event loop is never one of them.
"""

# ruff: noqa: N818 - the names say what happened, as the codes do

from __future__ import annotations

from typing import Any, ClassVar

import msgspec


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong, in the one shape that HTTP, websocket and bus share."""

    code: str
    message: str
    retryable: bool = False
    details: dict[str, Any] = {}


MAX_MESSAGE = 2000
"""Characters of a message; it may quote what a client sent, which can be long."""
MAX_DETAILS = 16_000
"""Bytes of the JSON text of the details."""


class AylluError(Exception):
    """Base of all errors that reach a caller.

    Attributes:
        code: the stable name on the wire.
        http_status: the status of an HTTP answer.
        retryable: whether the same call may succeed later.
        details: further facts, JSON values only.
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    retryable: bool = False

    def __init__(
        self, message: str, *, retryable: bool | None = None, details: dict[str, Any] | None = None
    ) -> None:
        if len(message) > MAX_MESSAGE:
            message = f"{message[:MAX_MESSAGE]}... (cut)"
        super().__init__(message)
        self.message = message
        self.details = details or {}
        if retryable is not None:
            self.retryable = retryable

    @property
    def info(self) -> ErrorInfo:
        """The error as it stands on the wire; details that are too large are left out, and said to be."""
        details = self.details
        if details and len(msgspec.json.encode(details)) > MAX_DETAILS:
            details = {"omitted": "the details are too large"}
        return ErrorInfo(
            code=self.code, message=self.message, retryable=self.retryable, details=details
        )


class InternalError(AylluError):
    """A defect of ours; the log of the process that answered has the traceback."""


class InvalidRequest(AylluError):
    """The request cannot be understood or breaks a rule; sending it again gives the same answer."""

    code = "invalid_request"
    http_status = 400


class ContextLengthExceeded(InvalidRequest):
    """The prompt and the wanted answer do not fit the model's context."""

    code = "context_length_exceeded"


class Unsupported(InvalidRequest):
    """The request is well formed, but this model or this build cannot do it."""

    code = "unsupported"


class TooLarge(InvalidRequest):
    """A frame, body or document exceeds a limit."""

    code = "too_large"
    http_status = 413


class Unauthenticated(AylluError):
    """No valid credentials came with the request."""

    code = "unauthenticated"
    http_status = 401


class PermissionDenied(AylluError):
    """The credentials are valid but do not allow this."""

    code = "permission_denied"
    http_status = 403


class NotFound(AylluError):
    """What the request names does not exist."""

    code = "not_found"
    http_status = 404


class ModelNotFound(NotFound):
    """No live actor serves the model; ``details["served"]`` lists those that are."""

    code = "model_not_found"


class MethodNotFound(NotFound):
    """There is no operation of that name."""

    code = "method_not_found"


class MethodNotAllowed(AylluError):
    """The route exists, but not for this HTTP verb."""

    code = "method_not_allowed"
    http_status = 405


class Conflict(AylluError):
    """The request contradicts what exists: a duplicate id, a stale expectation."""

    code = "conflict"
    http_status = 409


class Cancelled(AylluError):
    """The caller cancelled the call."""

    code = "cancelled"
    http_status = 499


class DeadlineExceeded(AylluError):
    """The call did not end within its deadline."""

    code = "deadline_exceeded"
    http_status = 504
    retryable = True


class SlowConsumer(AylluError):
    """The reader of a stream did not take events for too long; the work was cancelled."""

    code = "slow_consumer"
    http_status = 503
    retryable = True


class Overloaded(AylluError):
    """No capacity at present; ``details["retry_after"]``, where it is known, says after how many seconds there may be some."""

    code = "overloaded"
    http_status = 429
    retryable = True


class StepLimitExceeded(AylluError):
    """The agent took as many steps of its model as it may, and has no answer."""

    code = "step_limit_exceeded"
    http_status = 422


class BudgetExceeded(AylluError):
    """The turn, with those that it started, has used up the tokens, steps or cost units that it may take."""

    code = "budget_exceeded"
    http_status = 422


class Unavailable(AylluError):
    """No live actor serves this operation at present."""

    code = "unavailable"
    http_status = 503
    retryable = True


class ActorLost(Unavailable):
    """The actor that worked on the call fell silent: its process died or lost the bus."""

    code = "actor_lost"


class BusError(AylluError):
    """The bus cannot be reached or lost a message."""

    code = "bus_error"
    http_status = 503
    retryable = True


class EngineError(AylluError):
    """The engine refused or failed this request; others are not affected."""

    code = "engine_error"
    http_status = 500


class EngineDead(EngineError):
    """The engine died; its actor is restarted."""

    code = "engine_dead"
    http_status = 503
    retryable = True


class RemoteError(AylluError):
    """An error with a code that this version does not know (a newer server, an own actor)."""

    code = "unknown"

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.message, retryable=info.retryable, details=info.details)
        self._info = info

    @property
    def info(self) -> ErrorInfo:
        """The error as it came."""
        return self._info


def _subclasses(cls: type[AylluError]) -> list[type[AylluError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _subclasses(child))]


_BY_CODE: dict[str, type[AylluError]] = {
    cls.code: cls for cls in _subclasses(AylluError) if cls not in (AylluError, RemoteError)
}


def error_from(info: ErrorInfo) -> AylluError:
    """Return the exception that an error on the wire stands for."""
    cls = _BY_CODE.get(info.code)
    if cls is None:
        return RemoteError(info)
    return cls(info.message, retryable=info.retryable, details=info.details)


def error_codes() -> dict[str, type[AylluError]]:
    """Return the class of every code, for documents."""
    return dict(_BY_CODE)
