"""Turns that are followed over a real websocket while connections and gateways break, and over calls that fail as told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from socket import socket
from typing import Any

import anyio
import pytest
from support.agents import Agents, running_agents
from support.cuts import Wire, wire_to

from ayllu.actors.engines.engine import Generation, Prompt
from ayllu.actors.engines.scripted import Script, Step, script_of
from ayllu.bus.bus import local_bus
from ayllu.client import AgentClient, FollowedTurn, Stack, connect, turns
from ayllu.runtime.config import GatewayConfig
from ayllu.runtime.gateway import serve_gateway
from ayllu.runtime.supervisor import open_listener, url_of
from ayllu.schemas import (
    AylluError,
    BusError,
    Cancelled,
    Conflict,
    EngineError,
    ErrorInfo,
    InvalidRequest,
    NotFound,
    Operation,
    Turn,
    TurnEvent,
    TurnStatus,
    Unavailable,
    WhenBusy,
    decode,
    encode,
)

pytestmark = pytest.mark.asyncio


@dataclass
class Place:
    """Agents behind a gateway that can be restarted on its port."""

    agents: Agents
    wire: Wire
    stack: Stack
    _listener: socket
    _scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    _ended: anyio.Event = field(default_factory=anyio.Event)

    async def start(self) -> None:
        """Start the gateway."""
        self._scope, self._ended = anyio.CancelScope(), anyio.Event()

        async def run(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            with self._scope, self._listener.dup() as listener:
                config = GatewayConfig(shutdown_grace=0.01)
                await serve_gateway(self.agents.bus, config, listener, task_status=task_status)
            self._ended.set()

        await self.agents.tasks.start(run)

    async def stop(self) -> None:
        """Stop the gateway; whoever connects then waits for the next one."""
        self._scope.cancel()
        await self._ended.wait()


@asynccontextmanager
async def place(script: Script | str) -> AsyncIterator[Place]:
    """Run agents, a gateway, and a client whose wire can be cut."""
    with anyio.fail_after(40), open_listener("127.0.0.1", 0) as listener:
        async with local_bus() as bus, running_agents(bus, script=script) as agents:
            async with wire_to(url_of(listener, tls=False)) as wire:
                made = Place(agents, wire, None, listener)  # type: ignore[arg-type]
                await made.start()
                async with connect(wire.url) as stack:
                    made.stack = stack
                    yield made
                await made.stop()


def in_parts(parts: Sequence[Sequence[str]]) -> tuple[Script, list[anyio.Event]]:
    """Return a script that waits between its parts, and what lets it go on."""
    gates = [anyio.Event() for _ in parts[1:]]
    steps: list[Step] = list(parts[0])
    for gate, part in zip(gates, parts[1:], strict=True):
        steps += [gate, *part]
    return script_of({"": steps}), gates


def text_of(events: Iterable[TurnEvent]) -> str:
    return "".join(
        event.event.response_text_delta or "" for event in events if event.event is not None
    )


PARTS = [["one", " two"], [" three"], [" four", " five"], [" six"]]
WHOLE = "one two three four five six"


@pytest.mark.requirement("client-turn-resumes")
@pytest.mark.parametrize("how", ["connection", "gateway"])
async def test_a_turn_over_broken_connections_is_the_same_as_an_uninterrupted_one(how: str) -> None:
    script, gates = in_parts(PARTS)
    async with place(script) as running:
        await running.agents.create("a")
        seen: list[TurnEvent] = []
        waiting = dict(
            zip(["one two", "one two three", "one two three four five"], gates, strict=True)
        )
        async with running.stack.agent("a").turn("Count.") as turn:
            async for event in turn:
                seen.append(event)
                gate = waiting.pop(text_of(seen), None)
                if gate is not None:
                    if how == "connection":
                        running.wire.cut()
                    elif len(waiting) == 1:
                        await running.stop()
                        await running.start()
                    gate.set()
        assert turn.resumed == (3 if how == "connection" else 1)
        assert [event.index for event in seen] == list(range(len(seen)))
        assert text_of(seen) == WHOLE
        assert turn.result.response_message is not None
        assert turn.result.response_message.content == WHOLE
        told = await running.agents.events("a", turn.turn_id)
        assert [event for event in told if event.event] == seen
        assert running.agents.engine.started == 1


@pytest.mark.requirement("client-turn-resumes")
async def test_a_turn_is_followed_from_where_another_client_left_it() -> None:
    script, gates = in_parts(PARTS)
    async with place(script) as running:
        await running.agents.create("a")
        agent = running.stack.agent("a")
        seen: list[TurnEvent] = []
        async with agent.turn("Count.", turn_id="t") as turn:
            async for event in turn:
                seen.append(event)
                if text_of(seen) == "one two":
                    break
        for gate in gates:
            gate.set()
        async with agent.follow("t", epoch=turn.epoch, index=turn.index) as rest:
            seen += [event async for event in rest]
        assert text_of(seen) == WHOLE
        assert [event.index for event in seen] == list(range(len(seen)))
        async with agent.turn("Count.", turn_id="t") as again:  # The same id is the same turn.
            assert (await again.wait()).steps == rest.result.steps
        assert running.agents.engine.started == 1


@pytest.mark.requirement("client-turn-cancel")
async def test_leaving_does_not_cancel_and_cancel_does() -> None:
    async with place("stall:3") as running:
        await running.agents.create("a")
        agent = running.stack.agent("a")
        async with agent.turn("Go.") as turn:
            async for event in turn:
                if event.event is not None and event.event.response_text_delta == " 3":
                    break
        with pytest.raises(RuntimeError):
            _ = turn.result
        assert (await running.agents.turns.get("a", turn.turn_id)).status is TurnStatus.running
        async with agent.follow(turn.turn_id) as followed:
            with pytest.raises(Cancelled, match="enough"):
                async for event in followed:
                    if event.event is not None and event.event.response_text_delta == " 3":
                        ended = await followed.cancel("enough")
                        assert ended.status is TurnStatus.cancelled
        assert followed.result.status is TurnStatus.cancelled
        assert getattr(followed.result.steps[0], "text", "") == "1 2 3"


@pytest.mark.requirement("client-turn-errors")
async def test_what_the_server_refuses_is_raised_at_once() -> None:
    async with place("stall:1") as running:
        with pytest.raises(NotFound, match="nobody"):
            async with running.stack.agent("nobody").turn("Hi") as turn:
                await turn.wait()
        with pytest.raises(NotFound, match="nobody"):
            async with running.stack.agent("nobody").follow("t") as turn:
                await turn.wait()
        await running.agents.create("a")
        with pytest.raises(InvalidRequest):
            async with running.stack.agent("a").turn([]) as turn:
                await turn.wait()
        async with running.stack.agent("a").turn("Go.") as first:
            await anext(first)
            with pytest.raises(Conflict, match="busy"):
                async with running.stack.agent("a").turn("Hi", when_busy=WhenBusy.reject) as turn:
                    await turn.wait()
            await first.cancel()


@pytest.mark.requirement("client-turn-errors")
async def test_a_failed_turn_raises_its_error_and_has_its_result() -> None:
    def fail(_: Prompt, __: Generation) -> list[Step]:
        return ["Well", EngineError("it broke")]

    async with place(fail) as running:
        await running.agents.create("a")
        async with running.stack.agent("a").turn("Hi") as turn:
            with pytest.raises(EngineError, match="it broke"):
                await turn.wait()
        assert turn.result.status is TurnStatus.failed
        assert turn.resumed == 0


# Calls that fail as they are told to.


@dataclass
class Told:
    """A call that gives out events, and then an error if there is one."""

    events: list[bytes]
    error: AylluError | None = None
    result: bytes | None = None

    async def take(self) -> list[bytes]:
        events, self.events = self.events, []
        if not events and self.error is not None:
            raise self.error
        return events

    def close(self) -> None:
        """Leave nothing behind."""


class Server:
    """Answers calls with what was prepared, in order; notes what was asked."""

    def __init__(self, *answers: tuple[str, Told]) -> None:
        self._answers = list(answers)
        self.asked: list[dict[str, Any]] = []

    async def call(
        self, operation: Operation, payload: bytes, *, timeout: float | None = None
    ) -> Told:
        assert timeout is not None
        self.asked.append(decode(payload, dict[str, Any]))
        name, told = self._answers.pop(0)
        assert operation.name.endswith(name), operation.name
        return told

    @property
    def done(self) -> bool:
        return not self._answers


def progress(index: int, text: str = "x", epoch: int = 1) -> bytes:
    chunk = {
        "event_type": "step_progress",
        "step_uuid": "s",
        "step_type": "model_inference",
        "response_text_delta": text,
    }
    return encode({"epoch": epoch, "index": index, "event": chunk})


def state(
    index: int, status: TurnStatus, *, epoch: int = 1, recovered: bool = True, **fields: Any
) -> bytes:
    turn = Turn(agent_uuid="a", turn_id="t", status=status, epoch=epoch, index=index, **fields)
    return encode(TurnEvent(epoch, index, turn=turn, recovered=recovered))


LOST = BusError("the connection broke")
COMPLETED = TurnStatus.completed


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "FIRST_WAIT", 0.001)


async def follow(server: Server, **options: Any) -> tuple[FollowedTurn, list[TurnEvent]]:
    with anyio.fail_after(10):
        async with AgentClient(server, "a").turn("Hi", turn_id="t", **options) as turn:
            events = [event async for event in turn]
    assert server.done
    return turn, events


@pytest.mark.requirement("client-turn-accepted-once")
async def test_a_turn_whose_acceptance_is_unknown_is_looked_for_before_it_is_asked_for_again() -> (
    None
):
    server = Server(
        ("execute.stream", Told([], LOST)),
        ("turn.events", Told([], NotFound("no such turn"))),
        ("execute.stream", Told([])),
        ("turn.events", Told([progress(0), state(1, COMPLETED)])),
    )
    _, events = await follow(server)
    assert [event.index for event in events] == [0]
    first, _, second, _ = server.asked
    assert first == second

    server = Server(
        ("execute.stream", Told([], LOST)),
        ("turn.events", Told([progress(0), state(1, COMPLETED)])),
    )
    await follow(server)


@pytest.mark.requirement("client-turn-resumes")
async def test_positions_go_on_without_gap_or_double() -> None:
    server = Server(
        ("execute.stream", Told([])),
        ("turn.events", Told([progress(0), progress(1)], LOST)),
        ("turn.events", Told([], Unavailable("nobody is there"))),
        ("turn.events", Told([progress(2), progress(4)])),  # One is lost on the way.
        ("turn.events", Told([progress(3), progress(4)])),  # It ends without an end.
        ("turn.events", Told([state(5, COMPLETED)])),
    )
    turn, events = await follow(server)
    assert [event.index for event in events] == [0, 1, 2, 3, 4]
    assert [one.get("index", 0) for one in server.asked[1:]] == [0, 2, 2, 3, 5]
    assert [one.get("epoch", 0) for one in server.asked[1:]] == [0, 1, 1, 1, 1]
    assert turn.resumed == 4


@pytest.mark.requirement("client-turn-resumes")
async def test_what_broke_while_it_was_asked_for_goes_on_after_its_last_event() -> None:
    chunks = [encode(decode(progress(index), TurnEvent).event) for index in range(3)]
    server = Server(
        ("execute.stream", Told(chunks[:2], LOST)),
        ("turn.events", Told([progress(2), state(3, COMPLETED)])),
    )
    turn, events = await follow(server)
    assert [encode(event) for event in events] == [progress(index) for index in range(3)]
    assert (server.asked[1]["epoch"], server.asked[1]["index"]) == (1, 2)
    assert turn.resumed == 1
    server = Server(("execute.stream", Told(chunks)), ("turn.events", Told([state(3, COMPLETED)])))
    turn, events = await follow(server)
    assert [event.index for event in events] == [0, 1, 2]
    assert turn.resumed == 0


@pytest.mark.requirement("client-turn-told-of-loss")
async def test_the_consumer_is_told_where_the_server_has_lost_events() -> None:
    server = Server(
        ("execute.stream", Told([])),
        ("turn.events", Told([progress(0), progress(1), progress(2)], LOST)),
        (
            "turn.events",
            Told(
                [
                    state(1, TurnStatus.running, epoch=2, recovered=False, partial_text="y"),
                    progress(1, "z", epoch=2),
                ],
                LOST,
            ),
        ),
        ("turn.events", Told([state(2, COMPLETED, epoch=2)])),
    )
    _, events = await follow(server)
    assert [event.recovered for event in events] == [True, True, True, False, True]
    assert events[3].turn is not None
    assert events[3].turn.partial_text == "y"
    assert (server.asked[3]["epoch"], server.asked[3]["index"]) == (2, 2)


@pytest.mark.requirement("client-turn-errors")
async def test_patience_ends() -> None:
    class Gone(Server):
        async def call(
            self, operation: Operation, payload: bytes, *, timeout: float | None = None
        ) -> Told:
            self.asked.append({})
            return Told([], LOST)

    gone = Gone()
    with pytest.raises(BusError, match="broke"):
        await follow(gone, patience=0.05)
    assert len(gone.asked) > 2

    class Silent(Server):
        async def call(
            self, operation: Operation, payload: bytes, *, timeout: float | None = None
        ) -> Told:
            await anyio.sleep_forever()
            raise AssertionError

    with pytest.raises(BusError, match="not reached"):
        await follow(Silent(), patience=0.05)


@pytest.mark.requirement("client-turn-errors")
async def test_a_turn_that_failed_retryably_is_not_followed_again() -> None:
    info = ErrorInfo("unavailable", "no model", retryable=True)
    server = Server(
        ("execute.stream", Told([], Unavailable("no model", details={"turn_id": "t"}))),
        ("turn.events", Told([progress(0), state(1, TurnStatus.failed, error=info)])),
    )
    with pytest.raises(Unavailable, match="no model"):
        await follow(server)
    assert server.done
    server = Server(
        ("execute.stream", Told([])), ("turn.events", Told([state(0, TurnStatus.cancelled)]))
    )
    with pytest.raises(Cancelled):
        await follow(server)
