"""Asking a configured server on the web: within a deadline, a bound of bytes, and few tries."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import anyio
import httpcore2

from ...schemas import (
    AylluError,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    TooLarge,
    Unavailable,
)
from ..engines.openai.errors import Quote, retry_after_of

log = logging.getLogger(__name__)

TRIES = 3
FIRST_PAUSE = 0.25
LONGEST_PAUSE = 10.0
"""What a server may ask us to wait; who wants more gets no further try."""
CONNECT_SECONDS = 10.0
MAX_ERROR_BYTES = 1 << 14
_NOT_CONNECTED = (httpcore2.ConnectError, httpcore2.ConnectTimeout)
_BROKEN = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException)


@dataclass(frozen=True, slots=True)
class Question:
    """A request.

    Attributes:
        method: of HTTP.
        target: what follows the server's address, with its query.
        body: JSON text, if it has one.
        repeatable: whether it may be sent again though the server may have done something for it.
    """

    method: str
    target: str
    body: bytes = b""
    repeatable: bool = True


class WebApi:
    """A server; it is entered before it is asked. Where it is and the key are told to nobody.

    Args:
        what: it is to whoever reads an error.
        url: of its API.
        headers: of each request, the one with the key among them.
        secrets: what of these nobody may read.
        advice: what to look at if it does not let us in.
        denied: what its answer has if it does not, where its status is that of a wrong request.
        seconds: how long an answer may take, all tries together.
        max_bytes: of an answer.
        at_once: how many requests there may be at once; further ones wait.
    """

    def __init__(
        self,
        what: str,
        url: str,
        *,
        headers: Mapping[str, str],
        secrets: list[str],
        advice: str,
        denied: bytes = b"",
        seconds: float,
        max_bytes: int,
        at_once: int,
    ) -> None:
        self.what = what
        self._url = url.rstrip("/")
        parsed = httpcore2.URL(self._url)
        self._quote = Quote([*secrets, self._url, parsed.host.decode()])
        self._secure = parsed.scheme == b"https"
        own = {"User-Agent": "ayllu", "Accept": "application/json", "Accept-Encoding": "identity"}
        self._headers = {**own, **headers}
        self._advice = advice
        self._denied = denied
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._slots = anyio.CapacityLimiter(at_once)
        self._pool: httpcore2.AsyncConnectionPool | None = None

    async def __aenter__(self) -> WebApi:
        """Be ready for questions; nothing is sent."""
        # A connection that was kept may have died unseen, and what costs money is not sent twice.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=ssl.create_default_context() if self._secure else None,
            max_keepalive_connections=0,
        )
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close what is open."""
        if self._pool is not None:
            with anyio.CancelScope(shield=True):
                await self._pool.aclose()

    async def ask(self, question: Question) -> bytes:
        """Return the body of the server's answer.

        None of its errors is worth another try of the same: what may be tried again was.

        Raises:
            InvalidRequest: it refuses the request.
            TooLarge: it answers with more than it may.
            Overloaded: it has no capacity for us.
            DeadlineExceeded: it does not answer in time.
            Unavailable: it cannot be reached, refuses the key, or fails.
        """
        try:
            with anyio.fail_after(self._seconds):
                async with self._slots:
                    return await self._tried(question)
        except TimeoutError as error:
            message = f"{self.what} did not answer within {self._seconds:g} s"
            raise DeadlineExceeded(message, retryable=False) from error

    async def _tried(self, question: Question) -> bytes:
        pause, tries = FIRST_PAUSE, 1
        while True:
            try:
                return await self._once(question)
            except _Again as again:
                wait = pause if again.after is None else again.after
                if tries == TRIES or wait > LONGEST_PAUSE:
                    raise again.error from None
                log.info("%s is asked again in %.2f s: %s", self.what, wait, again.error)
            await anyio.sleep(wait)
            tries += 1
            pause *= 2

    async def _once(self, question: Question) -> bytes:
        if self._pool is None:
            raise RuntimeError("it was not entered")
        headers = dict(self._headers)
        if question.body:
            headers["Content-Type"] = "application/json"
        request: dict[str, Any] = {
            "headers": headers,
            "content": question.body,
            "extensions": {"timeout": {"connect": CONNECT_SECONDS, "pool": CONNECT_SECONDS}},
        }
        url = self._url + question.target
        try:
            async with self._pool.stream(question.method, url, **request) as response:
                if response.status == 200:
                    return await self._body(response)
                said = await _read(response, MAX_ERROR_BYTES)
                raise self._refusal(response, said, question)
        except _NOT_CONNECTED as error:
            log.warning("%s cannot be reached: %r", self.what, error)
            raise _Again(self._away("cannot be reached")) from error
        except _BROKEN as error:
            log.warning("%s breaks off: %r", self.what, error)
            raise self._away("does not answer as it should") from error

    async def _body(self, response: httpcore2.Response) -> bytes:
        if _header(response, b"content-encoding").lower() not in ("", "identity"):
            raise self._away("packs its answer, which was not asked for")
        body = await _read(response, self._max_bytes + 1)
        if len(body) > self._max_bytes:
            raise TooLarge(f"{self.what} answers with more than {self._max_bytes} bytes")
        return body

    def _refusal(
        self, response: httpcore2.Response, said: bytes, question: Question
    ) -> AylluError | _Again:
        """Return what an answer means whose status is not 200."""
        status = response.status
        if status in (401, 403) or (self._denied and self._denied in said):
            # Its text may quote a part of the key.
            log.warning("%s answers with status %d", self.what, status)
            return self._away(f"does not let us in (status {status}): {self._advice}")
        quoted = self._quote(said.decode(errors="replace"))
        log.warning("%s answers with status %d: %s", self.what, status, quoted)
        if status == 429:
            after = retry_after_of(_header(response, b"retry-after"))
            told = "" if after is None else f"; it may in {after:g} s"
            message = f"{self.what} has no capacity for us at the moment{told}"
            return _Again(Overloaded(message, retryable=False), after)
        if status >= 500:
            error = self._away(f"fails (status {status})")
            after = retry_after_of(_header(response, b"retry-after"))
            return _Again(error, after) if question.repeatable else error
        if status in (400, 413, 422):
            return InvalidRequest(f"{self.what} refuses the request: {quoted}")
        return self._away(f"answers with status {status}")

    def garbage(self, why: str) -> AylluError:
        """Return the error for an answer that is none."""
        return self._away(f"answers with something else: {why}")

    def _away(self, what: str) -> Unavailable:
        return Unavailable(f"{self.what} {what}", retryable=False)


class _Again(Exception):  # noqa: N818
    """A failure after which another try makes sense.

    Attributes:
        error: what it is if that fails too.
        after: how many seconds the server wants us to wait.
    """

    def __init__(self, error: AylluError, after: float | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.after = after


async def _read(response: httpcore2.Response, most: int) -> bytes:
    """Return so much of a body; what follows is not read."""
    found = bytearray()
    async for part in response.aiter_stream():
        found += part
        if len(found) >= most:
            break
    return bytes(found[:most])


def _header(response: httpcore2.Response, name: bytes) -> str:
    for known, value in response.headers:
        if known.lower() == name:
            return value.decode("latin-1")
    return ""


class WebTool:
    """A tool that asks one server; it is entered before it is run.

    Args:
        api: how it asks.
    """

    def __init__(self, api: WebApi) -> None:
        self._api = api

    async def __aenter__(self) -> Self:
        """Be ready to ask."""
        await self._api.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close what is open."""
        await self._api.__aexit__(exc_type, exc, traceback)
