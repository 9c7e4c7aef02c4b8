"""One generation by a server: its tries, its time limits, its end."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

import anyio
import httpcore2

from ....schemas import AylluError, EngineDead, EngineError
from ..engine import Delta
from ..settings import OpenAISettings
from .answer import Answer
from .errors import RETRY_AFTER
from .server import BROKEN, Server, check_is_stream, stream_of

log = logging.getLogger(__name__)

T = TypeVar("T")

CLOSE_SECONDS = 5.0
DRAIN_SECONDS = 0.2
"""How long the end of a response may take after the end of its answer; a connection that has seen it stays open."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
"""Seconds before another try. A server that asks for more patience is not asked again: that is for the caller to decide."""


class Call:
    """Asks the server, again where that makes sense, and reads its answer. Nothing is sent before the first read.

    Args:
        server: who is asked.
        path: of the request.
        body: of the request.
        new_answer: returns what reads an answer.
        settings: the limits.
    """

    def __init__(
        self,
        server: Server,
        path: str,
        body: bytes,
        new_answer: Callable[[], Answer],
        settings: OpenAISettings,
    ) -> None:
        self.ended = anyio.Event()
        self._server = server
        self._path = path
        self._body = body
        self._new_answer = new_answer
        self._settings = settings
        self._answer = new_answer()
        self._response: httpcore2.Response | None = None
        self._stream: AsyncGenerator[bytes, None] | None = None
        self._waiting: anyio.CancelScope | None = None
        self._death: EngineDead | None = None
        self._begin_until: float | None = None
        self._tries = 0
        self._given = False
        self._finished = False

    def kill(self, error: EngineDead) -> bool:
        """End whatever it waits for with an error, and every further read too; whether it waits."""
        self._death = error
        if self._waiting is None:
            return False
        self._waiting.cancel()
        return True

    async def read(self) -> Sequence[Delta]:
        """Return what comes next; nothing at the end.

        Raises:
            AylluError: the server does not answer, or fails in its answer.
        """
        if self._begin_until is None:
            self._begin_until = anyio.current_time() + self._settings.first_token_seconds
        while not self._finished:
            try:
                found = await self._next()
            except AylluError as error:
                if self._given or isinstance(error, EngineDead) or not error.retryable:
                    raise
                await self._pause(error)
                continue
            if found:
                self._given = True
                return found
        return ()

    async def _next(self) -> Sequence[Delta]:
        """Return what the next bytes of the answer say."""
        if self._answer.done:
            await self._drain()
            return self._end()
        try:
            if self._stream is None:
                await self._ask()
            assert self._stream is not None
            received = await self._within(self._deadline(), anext, self._stream, None)
        except BROKEN as error:
            if self._death is not None:
                raise self._death from error
            received = None  # a whole answer stands, whatever became of its connection
            if not self._answer.whole:
                raise self._broken(error) from error
        if received is not None:
            return self._answer.feed(received)
        return self._end()

    def _end(self) -> Sequence[Delta]:
        found = self._answer.finish()
        self._finished = True
        return found

    async def _ask(self) -> None:
        """Send the request, and read the headers of the response."""
        assert self._begin_until is not None
        self._tries += 1
        self._response = await self._within(
            self._begin_until, self._server.post, self._path, self._body
        )
        if self._response.status != 200:
            until = min(self._begin_until, anyio.current_time() + CLOSE_SECONDS)
            error = await self._within(until, self._server.refusal, self._response)
            log.warning("%s answers %d: %s", self._server.url, self._response.status, error)
            raise error
        check_is_stream(self._response)
        self._stream = stream_of(self._response)

    def _deadline(self) -> float:
        assert self._begin_until is not None
        if not self._answer.begun:
            return self._begin_until
        return anyio.current_time() + self._settings.idle_seconds

    async def _within(
        self, deadline: float, function: Callable[..., Awaitable[T]], *arguments: object
    ) -> T:
        """Wait for something, until the deadline or the end of the engine.

        Raises:
            EngineError: neither came.
        """
        if self._death is not None:
            raise self._death
        with anyio.CancelScope(deadline=deadline) as scope:
            self._waiting = scope
            try:
                return await function(*arguments)
            finally:
                self._waiting = None
        if self._death is not None:
            raise self._death
        when = "in" if self._answer.begun else "before"
        log.warning("%s is silent for too long", self._server.url)
        raise EngineError(
            f"the server of the model was silent for too long {when} its answer", retryable=True
        )

    def _broken(self, error: Exception) -> EngineError:
        reason = self._server.quote(error) or type(error).__name__
        log.warning("%s: %s: %s", self._server.url, type(error).__name__, reason)
        if self._answer.begun:
            return EngineError("the server of the model ended in the middle", retryable=True)
        if isinstance(error, httpcore2.ConnectError | httpcore2.ConnectTimeout):
            return EngineError("the server of the model cannot be reached", retryable=True)
        return EngineError("the server of the model gave no answer", retryable=True)

    async def _pause(self, error: AylluError) -> None:
        """Wait before another try.

        Raises:
            AylluError: the error, if there shall be none.
        """
        assert self._begin_until is not None
        await self._close_response()
        asked = error.details.get(RETRY_AFTER)
        pause = FIRST_PAUSE * 2.0 ** (self._tries - 1) * random.uniform(0.5, 1.0)  # noqa: S311
        if asked is not None:
            pause = float(asked)
        late = anyio.current_time() + pause >= self._begin_until
        if self._tries > self._settings.retries or pause > LONGEST_PAUSE or late:
            raise error
        log.info("asking %s again in %.2f s: %s", self._server.url, pause, error)
        self._answer = self._new_answer()
        await self._within(self._begin_until, anyio.sleep, pause)

    async def _drain(self) -> None:
        """Read the end of the response, so that its connection can be used again."""
        with anyio.move_on_after(DRAIN_SECONDS):
            try:
                while self._stream is not None and await anext(self._stream, None) is not None:
                    pass
            except BROKEN as error:
                log.debug("%s after its answer: %r", self._server.url, error)

    async def _close_response(self) -> None:
        response, self._response = self._response, None
        stream, self._stream = self._stream, None
        # Bounded: nothing of it waits for the server.
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            if stream is not None:
                await stream.aclose()
            if response is not None:
                await response.aclose()

    async def aclose(self) -> None:
        """End the request; of an answer that is not whole, the connection is closed, which tells the server to stop."""
        self._finished = True
        try:
            await self._close_response()
        finally:
            self.ended.set()
