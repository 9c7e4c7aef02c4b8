"""Whatever breaks wherever: who follows a turn gets all of its events, in order, each once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu.client import AgentClient, turns
from ayllu.schemas import (
    AgenticSystemExecuteResponseEventType,
    AgenticSystemExecuteResponseStreamChunk,
    AylluError,
    BusError,
    ExecutionStepType,
    NotFound,
    Operation,
    Turn,
    TurnEvent,
    TurnStatus,
    decode,
    encode,
)


def chunk(index: int) -> AgenticSystemExecuteResponseStreamChunk:
    return AgenticSystemExecuteResponseStreamChunk(
        AgenticSystemExecuteResponseEventType.step_progress,
        "s",
        ExecutionStepType.model_inference,
        response_text_delta=f" {index}",
    )


@dataclass
class Call:
    """Gives out batches, and then breaks, or ends."""

    batches: list[list[bytes]]
    error: AylluError | None
    result: bytes | None = None

    async def take(self) -> list[bytes]:
        if self.batches:
            return self.batches.pop(0)
        if self.error is not None:
            raise self.error
        return []

    def close(self) -> None:
        """Leave nothing behind."""


@dataclass
class Faults:
    """A server with one turn, whose calls break after so many events; when no breaks are left, none does.

    Attributes:
        count: how many events the turn has.
        breaks: after how many events each call breaks; -1 for a request that does not arrive.
        size: how many events come at once.
    """

    count: int
    breaks: list[int]
    size: int
    accepted: int = 0
    asked: list[str] = field(default_factory=list)

    async def call(
        self, operation: Operation, payload: bytes, *, timeout: float | None = None
    ) -> Call:
        broken = self.breaks.pop(0) if self.breaks else None
        self.asked.append(operation.name)
        lost = BusError("the connection broke")
        if broken == -1:
            return Call([], lost)
        if operation.name == "agentic_system.execute.stream":
            self.accepted += 1
            told = [encode(chunk(index)) for index in range(self.count)]
        elif not self.accepted:
            return Call([], NotFound("no such turn"))
        else:
            position = decode(payload, dict[str, Any])
            first = position.get("index", 0)
            assert position.get("epoch", 0) == (1 if first else 0)
            told = [encode(TurnEvent(1, index, chunk(index))) for index in range(first, self.count)]
            turn = Turn("a", "t", TurnStatus.completed, 1, self.count)
            told.append(encode(TurnEvent(1, self.count, turn=turn)))
        given = told if broken is None else told[:broken]
        batches = [given[at : at + self.size] for at in range(0, len(given), self.size)]
        return Call(batches, None if broken is None else lost)


@pytest.mark.requirement("client-turn-resumes", "client-turn-accepted-once")
@given(
    count=st.integers(0, 12),
    breaks=st.lists(st.integers(-1, 6), max_size=8),
    size=st.integers(1, 5),
)
@settings(max_examples=200)
def test_whatever_breaks_wherever(count: int, breaks: list[int], size: int) -> None:
    server = Faults(count, list(breaks), size)

    async def follow() -> None:
        with anyio.fail_after(10), pytest.MonkeyPatch.context() as patch:
            patch.setattr(turns, "FIRST_WAIT", 0.0)
            async with AgentClient(server, "a").turn("Hi", turn_id="t") as turn:
                events = [event async for event in turn]
        assert events == [TurnEvent(1, index, chunk(index)) for index in range(count)]
        assert turn.result.status is TurnStatus.completed

    anyio.run(follow)
    assert server.accepted == 1
    assert server.asked[0] == "agentic_system.execute.stream"


class Silent:
    """A gateway that is never reached."""

    async def call(
        self, operation: Operation, payload: bytes, *, timeout: float | None = None
    ) -> Call:
        await anyio.sleep_forever()
        raise AssertionError


@pytest.mark.requirement("client-turn-resumes")
def test_a_gateway_that_is_never_reached_is_given_up_when_patience_ends() -> None:
    async def follow() -> None:
        with anyio.fail_after(5), pytest.MonkeyPatch.context() as patch:
            patch.setattr(turns, "LONGEST_WAIT", 0.05)
            with pytest.raises(BusError, match="was not reached"):
                async with AgentClient(Silent(), "a").turn("Hi", patience=0.3) as turn:
                    await turn.wait()

    anyio.run(follow)
