"""One generation of llama.cpp: the thread that blocks in it, and the buffer between the thread and the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any

import anyio

from ...schemas import (
    AylluError,
    ContextLengthExceeded,
    EngineDead,
    EngineError,
    InvalidRequest,
    StopReason,
)
from .engine import Delta

log = logging.getLogger(__name__)

Method = Callable[[dict[str, Any], Callable[[dict[str, Any]], bool]], None]
"""A method of ``xllamacpp.Server``: blocks until the answer has ended; a callback that returns True cancels it."""


class LlamaCppCall:
    """Runs in a thread, is read on the event loop. The buffer is bounded by the answer, and so by the context.

    Attributes:
        ended: set on the event loop when the thread has left llama.cpp.
        error: why it failed, once it has ended.
    """

    def __init__(
        self, method: Method, request: dict[str, Any], *, on_end: Callable[[LlamaCppCall], None]
    ) -> None:
        self.ended = anyio.Event()
        self.error: AylluError | None = None
        self._method = method
        self._request = request
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._buffer: deque[Delta] = deque()
        self._news = anyio.Event()
        self._cancelled = False
        self._stop_reason: StopReason | None = None
        self._prompt_tokens = self._completion_tokens = 0

    def cancel(self, error: AylluError | None = None) -> None:
        """Let the thread end at llama.cpp's next callback: after the next token, or the next part of the prefill.

        Args:
            error: what whoever still reads the answer is told.
        """
        self._cancelled = True
        self.error = self.error or error

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Yield the answer as it comes.

        Raises:
            AylluError: it failed.
        """
        while True:
            while self._buffer:
                yield self._buffer.popleft()
            if self.ended.is_set():
                break
            self._news = anyio.Event()
            await self._news.wait()
        if self.error is not None:
            raise self.error
        yield Delta(
            stop_reason=self._stop_reason,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
        )

    def run(self) -> None:
        """Generate; called in the thread."""
        error: AylluError | None = None
        try:
            if not self._cancelled:
                self._method(self._request, self._take)
        except ValueError as wrong:
            # llama.cpp says so of dialogs and schemas that it cannot read.
            error = InvalidRequest(f"llama.cpp refused the request: {wrong}")
        except BaseException as unexpected:
            log.exception("llama.cpp failed")
            error = EngineDead(f"llama.cpp failed: {unexpected!r}")
        del self._method  # the model can be unloaded, whoever still holds the answer
        self._call_soon(self._finish, error)

    def _take(self, answer: dict[str, Any]) -> bool:
        """Take a piece of the answer, in the thread; whether to cancel."""
        if "error" in answer:
            self._call_soon(self._fail, error_of(answer["error"]))
            return True
        usage = answer.get("usage")
        if usage:
            self._prompt_tokens = usage["prompt_tokens"]
            self._completion_tokens = usage["completion_tokens"]
        for choice in answer.get("choices", ()):
            if choice.get("finish_reason"):
                length = choice["finish_reason"] == "length"
                self._stop_reason = StopReason.max_tokens if length else StopReason.finished_ok
            delta = _delta_of(choice)
            if delta is not None:
                self._call_soon(self._put, delta)
        return self._cancelled

    def _call_soon(self, function: Callable[[Any], None], value: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, value)
        except RuntimeError:
            # The event loop is closed: nobody reads, and nothing is left to be told.
            self._cancelled = True

    def _put(self, delta: Delta) -> None:
        self._buffer.append(delta)
        self._news.set()

    def _fail(self, error: AylluError) -> None:
        self.error = self.error or error

    def _finish(self, error: AylluError | None) -> None:
        self.error = self.error or error
        if self.error is None and self._stop_reason is None and not self._cancelled:
            self.error = EngineDead("llama.cpp stopped in the middle of an answer")
        self.ended.set()
        self._news.set()
        self._on_end(self)


def error_of(error: dict[str, Any]) -> AylluError:
    """Return what an error object of llama.cpp means."""
    message = str(error.get("message"))
    if error.get("type") == "exceed_context_size_error":
        needed, context = error.get("n_prompt_tokens"), error.get("n_ctx")
        return ContextLengthExceeded(
            f"the prompt has {needed} tokens; the context holds {context}, answer included",
            details={"prompt_tokens": needed, "context": context},
        )
    if error.get("code") == 400:
        return InvalidRequest(f"llama.cpp refused the request: {message}")
    return EngineError(f"llama.cpp failed: {message}")


def _delta_of(choice: dict[str, Any]) -> Delta | None:
    # A dialog's answer comes as `delta.content`, that of a raw prompt as `text`.
    text = choice.get("text") or choice.get("delta", {}).get("content") or ""
    tokens = (choice.get("logprobs") or {}).get("content")
    if not text and not tokens:
        return None
    return Delta(text, [_logprob_of(token) for token in tokens] if tokens else None)


def _logprob_of(token: dict[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = {
        key: token[key] for key in ("token", "logprob", "bytes") if key in token
    }
    if "top_logprobs" in token:
        known["top_logprobs"] = [_logprob_of(other) for other in token["top_logprobs"]]
    return known
