"""One step of the model, over the bus: its tokens are told as they come, and it goes on in mid-sentence when its actor dies."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import closing

import anyio

from ...bus.bus import Bus
from ...bus.client import open_call
from ...schemas import (
    OPERATIONS,
    AylluError,
    ChatCompletionRequest,
    ChatCompletionResponseStreamChunk,
    Dialog,
    ModelNotFound,
    Overloaded,
    StopReason,
    TokenUsage,
    ToolCall,
    Unsupported,
    decode,
    encode,
)
from ..patience import FIRST_PAUSE, FULL_PATIENCE, LONGEST_PAUSE, PATIENCE, pause_after
from ..untrusted import without_control_tokens
from .delegation import definitions
from .history import dialog_of
from .records import Said
from .turn import Turn

log = logging.getLogger(__name__)

_CHAT = OPERATIONS["chat_completion.stream"]

Tell = Callable[[int, list[str]], Awaitable[None]]
"""Tells readers deltas: the index of the first one, and their texts."""


class Inference:
    """What a model says in one step.

    Args:
        turn: the turn, whose step of the model runs.
        tell: tells readers.
    """

    def __init__(self, turn: Turn, tell: Tell) -> None:
        step = turn.step
        if step is None:
            raise ValueError("no step runs")
        self._turn = turn
        self._tell = tell
        self._first = step.first
        self._parts: list[str] = [step.text] if step.text else []
        self._length = len(step.text)
        self._cuts: list[int] = list(step.cuts)
        self._calls: list[ToolCall] = []
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._stop: StopReason | None = None

    def said(self, stop_reason: StopReason | None = None) -> Said:
        """Return what was said until now."""
        return Said(
            at=time.time(),
            text="".join(self._parts),
            cuts=self._cuts,
            tool_calls=self._calls,
            stop_reason=stop_reason or self._stop or StopReason.not_stopped,
            usage=TokenUsage(
                prompt_tokens=self._prompt_tokens, completion_tokens=self._completion_tokens
            ),
        )

    async def run(self, bus: Bus) -> Said:
        """Let the model speak to the end of the step; `said` tells what there is when this is cancelled.

        Raises:
            AylluError: the model cannot go on.
        """
        now = anyio.current_time()
        pause, give_up, full_until = FIRST_PAUSE, now + PATIENCE, now + FULL_PATIENCE
        while True:
            before = len(self._cuts)
            try:
                await self._attempt(bus)
            except Unsupported:
                if not self._parts:
                    raise
                # Its engine cannot continue an answer: the step ends here, and a new one follows.
                return self.said(StopReason.not_stopped)
            except AylluError as error:
                # Of a model that was there when the agent was made, an actor may be just coming back.
                if not (error.retryable or isinstance(error, ModelNotFound)):
                    raise
                now = anyio.current_time()
                if len(self._cuts) > before:
                    pause, full_until = FIRST_PAUSE, now + FULL_PATIENCE
                full = isinstance(error, Overloaded)
                if full or len(self._cuts) > before:
                    give_up = now + PATIENCE  # It was there.
                if now > (full_until if full else give_up):
                    raise
                log.info("the model is full, or was lost, going on: %s", error)
                self._calls.clear()
                await anyio.sleep(pause_after(error, pause))
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                return self.said()

    def _request(self) -> ChatCompletionRequest:
        config = self._turn.opening.agent.config
        said = "".join(self._parts)
        first = self._turn.inferences <= 1
        return ChatCompletionRequest(
            model=config.model,
            dialog=dialog_of(self._turn),
            sampling_params=config.sampling_params,
            available_tools=[
                *config.available_tools,
                *definitions(config, handed=self._turn.was_handed),
            ],
            max_tokens=self._most(),
            stream=True,
            # A tool that is forced is forced once: the answers of tools must become an answer of the model.
            tool_choice=config.tool_choice if first and not said else None,
            assistant_prefix=without_control_tokens(said)
            or None,  # It may repeat what a tool said.
        )

    def _most(self) -> int:
        """Return how many tokens the answer may still have; 0 is no limit."""
        opening = self._turn.opening
        limits = (
            [opening.agent.config.max_tokens - len(self._cuts)]
            if opening.agent.config.max_tokens
            else []
        )
        if opening.limits.tokens is not None:
            limits.append(opening.limits.tokens - self._turn.spent.tokens - len(self._cuts))
        return max(1, min(limits)) if limits else 0

    async def _attempt(self, bus: Bus) -> None:
        request = self._request()
        call = await open_call(
            bus,
            _CHAT,
            encode(request),
            model=request.model,
            traceparent=self._turn.opening.traceparent or None,
        )
        with closing(call):
            while events := await call.take():
                await self._take([decode(one, ChatCompletionResponseStreamChunk) for one in events])

    async def _take(self, chunks: list[ChatCompletionResponseStreamChunk]) -> None:
        index = self._first + len(self._cuts)
        texts = []
        for chunk in chunks:
            if chunk.text_delta:
                texts.append(chunk.text_delta)
                self._parts.append(chunk.text_delta)
                self._length += len(chunk.text_delta)
                self._cuts.append(self._length)
            if chunk.tool_call is not None:
                self._calls.append(chunk.tool_call)
            if chunk.usage is not None:
                self._prompt_tokens += chunk.usage.prompt_tokens
                self._completion_tokens += chunk.usage.completion_tokens
            if chunk.stop_reason is not None:
                self._stop = chunk.stop_reason
        if texts:
            await self._tell(index, texts)


async def summarised(bus: Bus, turn: Turn, dialog: Dialog, max_tokens: int) -> str:
    """Return what the model makes of a dialog that asks for a summary.

    Raises:
        AylluError: it cannot.
    """
    config = turn.opening.agent.config
    request = ChatCompletionRequest(
        model=config.model, dialog=dialog, max_tokens=max_tokens, stream=True
    )
    call = await open_call(bus, _CHAT, encode(request), model=config.model)
    parts = []
    with closing(call):
        while events := await call.take():
            parts += [decode(one, ChatCompletionResponseStreamChunk).text_delta for one in events]
    return "".join(parts).strip()
