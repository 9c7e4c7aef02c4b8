"""The inbox of an agent: turns that begin with nothing but a NATS client."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import nats
import pytest
from anyio import to_thread
from nats.aio.client import Client
from support.agents import Agents, asked, running_agents
from support.teams import asks, parts

from ayllu.actors.agents import inbox
from ayllu.actors.agents.executor import Executor
from ayllu.actors.agents.streams import AGENTS, history_subject, inbox_subject, wake_subject
from ayllu.actors.engines.scripted import Step
from ayllu.bus.bus import Bus, connect, local_bus
from ayllu.bus.deadletters import letters, replay
from ayllu.bus.durable import Appended
from ayllu.bus.memory_streams import MemoryStreams
from ayllu.bus.server import embedded_server
from ayllu.schemas import (
    AgenticSystemExecuteRequest,
    Conflict,
    Message,
    Overloaded,
    Role,
    SubAgent,
    TurnStatus,
    WhenBusy,
    encode,
)

pytestmark = pytest.mark.asyncio


def said(text: str) -> bytes:
    """Return a message as anybody writes it."""
    return json.dumps({"role": "user", "content": text}).encode()


async def tell(bus: Bus, agent: str, payload: bytes, msg_id: str) -> None:
    """Put a message into an inbox."""
    await bus.storage.streams.append(inbox_subject(agent), payload, msg_id=msg_id)


async def inbox_is_empty(bus: Bus, agent: str) -> None:
    """Wait until all messages have become turns that have ended."""
    with anyio.fail_after(20):
        while await bus.storage.streams.first(AGENTS.name, inbox_subject(agent)) is not None:
            await anyio.sleep(0.02)  # a purge has no event


@asynccontextmanager
async def beside_agents(folder: Path) -> AsyncIterator[tuple[Client, Agents]]:
    """Open a plain NATS client on a server of its own, where agents are served."""
    async with (
        embedded_server(folder / "nats") as server,
        connect(server.url) as bus,
        running_agents(bus) as agents,
    ):
        client = await nats.connect(server.url)
        try:
            yield client, agents
        finally:
            await client.close()


@pytest.mark.requirement("inbox-turn", "inbox-order")
async def test_messages_become_turns_in_their_order_between_commands() -> None:
    async with local_bus() as bus, running_agents(bus) as agents:
        await agents.create("a")
        for number in range(5):
            await tell(bus, "a", said(f"m{number}"), f"id-{number}")
        await inbox_is_empty(bus, "a")
        turns = [turn async for turn in agents.turns.list("a")]
        assert [turn.turn_id for turn in turns] == [f"id-{number}" for number in range(5)]
        answers = [turn.response_message.content for turn in turns if turn.response_message]
        assert answers == [f"m{number}" for number in range(5)]


@pytest.mark.requirement("inbox-durable")
async def test_what_came_while_nobody_was_there_is_done_later_and_once() -> None:
    async with local_bus() as bus:
        async with running_agents(bus) as agents:
            await agents.create("a")
        for _ in range(2):
            await tell(bus, "a", said("hello"), "same")
        request = AgenticSystemExecuteRequest(
            "a", [Message(role=Role.user, content="whole")], turn_id="own"
        )
        await tell(bus, "a", encode(request), "other")
        async with running_agents(bus) as agents:
            await inbox_is_empty(bus, "a")
            turns = [turn async for turn in agents.turns.list("a")]
        assert [turn.turn_id for turn in turns] == ["same", "own"]
        assert {turn.status for turn in turns} == {TurnStatus.completed}


@pytest.mark.requirement("inbox-refused")
@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"{", "it is no message"),
        (b'{"role": "user", "content": ""}', "it is empty"),
        (b'{"role": "assistant", "content": "x"}', "roles user and tool"),
        (b'{"agent_uuid": "b", "messages": []}', "it is for the agent 'b'"),
        (b'{"agent_uuid": "a", "messages": [], "detached": true}', "detached"),
        (
            b'{"agent_uuid": "a", "messages": [], "when_busy": "interrupt"}',
            "waits for those before it",
        ),
        (b'{"claim": "x"}', "neither"),
        (b'{"role": "user", "content": "x", "y": 1}', "unknown field `y`"),
    ],
)
async def test_what_is_no_message_becomes_a_dead_letter(payload: bytes, why: str) -> None:
    async with local_bus() as bus, running_agents(bus) as agents:
        await agents.create("a")
        await tell(bus, "a", payload, "wrong")
        await tell(bus, "a", said("right"), "right")
        await inbox_is_empty(bus, "a")
        [letter] = await letters(bus.storage)
        assert why in letter.reason
        assert [turn.turn_id async for turn in agents.turns.list("a")] == ["right"]


@pytest.mark.requirement("inbox-refused")
async def test_a_message_to_nobody_waits_among_the_dead_letters() -> None:
    async with local_bus() as bus, running_agents(bus) as agents:
        await tell(bus, "nobody", said("hello"), "early")
        await inbox_is_empty(bus, "nobody")
        [letter] = await letters(bus.storage)
        assert "there is no agent 'nobody'" in letter.reason
        await agents.create("nobody")
        await replay(bus.storage, letter.id)
        await inbox_is_empty(bus, "nobody")
        [turn] = [turn async for turn in agents.turns.list("nobody")]
        assert turn.status is TurnStatus.completed


@pytest.mark.requirement("inbox-refused")
@pytest.mark.parametrize("token", ["a" * 600, "a=1Fturn", "=FF", "=61"])
async def test_what_comes_to_a_subject_that_is_nobodys_is_a_dead_letter(token: str) -> None:
    async with local_bus() as bus, running_agents(bus) as agents:
        await agents.create("a")
        subject = inbox_subject("x").replace(".x.", f".{token}.")
        await bus.storage.streams.append(subject, said("hello"), msg_id="lost")
        await tell(bus, "a", said("right"), "right")
        await inbox_is_empty(bus, "a")
        with anyio.fail_after(10):
            while await bus.storage.streams.first(AGENTS.name, subject) is not None:
                await anyio.sleep(0.02)
        [letter] = await letters(bus.storage)
        assert "nobody's inbox" in letter.reason
        assert [turn.turn_id async for turn in agents.turns.list("a")] == ["right"]


@pytest.mark.requirement("inbox-refused")
@pytest.mark.parametrize("msg_id", ["x" * 161, "ä" * 100])
async def test_an_id_that_no_turn_can_have_makes_a_dead_letter(msg_id: str) -> None:
    async with local_bus() as bus, running_agents(bus) as agents:
        await agents.create("a")
        await tell(bus, "a", said("wrong"), msg_id)
        await tell(bus, "a", said("right"), "right")
        await inbox_is_empty(bus, "a")
        assert len(await letters(bus.storage)) == 1
        assert [turn.turn_id async for turn in agents.turns.list("a")] == ["right"]


@pytest.mark.requirement("inbox-turn")
async def test_a_turn_of_an_inbox_ends_with_its_agent(tmp_path: Path) -> None:
    never = anyio.Event()

    def worker(_: str, __: Sequence[str]) -> Sequence[Step]:
        return [never]

    script = parts({"boss": asks("ask"), "worker": worker})
    async with local_bus() as bus, running_agents(bus, script=script, executors=0) as agents:
        await agents.create("worker", instructions="worker")
        await agents.create("boss", instructions="boss", sub_agents=[SubAgent("ask", ["worker"])])
        await agents.executor(slots=2)  # So that the boss is parked at once.
        await tell(bus, "boss", said("x"), "t")
        with anyio.fail_after(10):
            await agents.engine.wait_for(lambda engine: engine.running == 1)
            await agents.system.delete("boss")
            await agents.engine.wait_for(lambda engine: engine.running == 0)
        await inbox_is_empty(bus, "boss")
        turn = await agents.turns.get("boss", "t")
        assert turn.status is TurnStatus.cancelled
        assert await letters(bus.storage) == []


@pytest.mark.requirement("inbox-turn")
async def test_a_turn_that_waits_in_the_inbox_is_queued_and_can_be_cancelled(
    tmp_path: Path,
) -> None:
    async with local_bus() as bus, running_agents(bus, executors=0) as agents:
        await agents.create("a")
        await tell(bus, "a", said("hello"), "one")
        assert (await agents.turns.get("a", "one")).status is TurnStatus.queued
        await agents.turns.cancel("a", "one", reason="not needed")
        await agents.executor()
        await inbox_is_empty(bus, "a")
        assert (await agents.turns.get("a", "one")).status is TurnStatus.cancelled


@pytest.mark.requirement("inbox-reply", "inbox-events")
async def test_a_plain_nats_client_tells_hears_and_follows(tmp_path: Path) -> None:
    async with beside_agents(tmp_path) as (client, agents):
        await agents.create("support")
        reply = client.new_inbox()
        answers = await client.subscribe(reply)
        ended = await client.subscribe("ayllu.v1.event.turn.support.>")
        headers = {"Nats-Msg-Id": "question-1", "Ayllu-Reply-To": reply}
        subject = "ayllu.v1.agent.support.inbox"
        stored = await client.request(subject, said("hello"), timeout=5, headers=headers)
        assert json.loads(stored.data)["stream"] == AGENTS.name
        answer = json.loads((await answers.next_msg(timeout=10)).data)
        assert answer["turn"]["turn_id"] == "question-1"
        assert answer["turn"]["response_message"]["content"] == "hello"
        event = await ended.next_msg(timeout=5)
        assert event.subject == "ayllu.v1.event.turn.support.completed"
        told: dict[str, Any] = json.loads(event.data)
        assert (told["turn_id"], told["text"]) == ("question-1", "hello")
        assert told["spent"]["steps"] == 1
        # Again under the same id: stored once, answered once.
        again = await client.request(subject, said("hello"), timeout=5, headers=headers)
        assert json.loads(again.data)["duplicate"] is True
        wrong = {"Nats-Msg-Id": "question-2", "Ayllu-Reply-To": reply}
        await client.request(subject, b"{}", timeout=5, headers=wrong)
        error = json.loads((await answers.next_msg(timeout=10)).data)["error"]
        assert error["code"] == "invalid_request"
        follow = json.dumps({"agent_id": "support", "turn_id": "question-1"}).encode()
        events = await client.subscribe("followed")
        await client.publish("ayllu.v1.op.agentic_system.turn.events", follow, reply="followed")
        first = json.loads((await events.next_msg(timeout=5)).data)
        assert first["event"]["event_type"] == "step_start"


@pytest.mark.requirement("inbox-reply")
async def test_no_answer_goes_to_subjects_of_ours(tmp_path: Path) -> None:
    async with beside_agents(tmp_path) as (client, agents):
        await agents.create("a")
        bus = agents.bus
        for number, subject in enumerate(("$JS.API.x", "ayllu.v1.agent.a.inbox", "a.*")):
            headers = {"Nats-Msg-Id": f"{number}", "Ayllu-Reply-To": subject}
            await client.request(inbox_subject("a"), said("x"), timeout=5, headers=headers)
        await inbox_is_empty(bus, "a")
        reasons = [letter.reason for letter in await letters(bus.storage)]
        assert len(reasons) == 3
        assert all(reason.startswith("no answer can be sent to") for reason in reasons)
        assert [turn async for turn in agents.turns.list("a")] == []


def publish_raw(url: str, subject: str, headers: bytes, payload: bytes) -> None:
    """Publish what no client would, and return when the server has it."""
    credentials, _, address = url.removeprefix("nats://").rpartition("@")
    host, _, port = address.rpartition(":")
    options: dict[str, Any] = {"verbose": False, "headers": True}
    user, _, password = credentials.partition(":")
    options |= {"user": user, "pass": password} if password else {"auth_token": user}
    head = b"NATS/1.0\r\n" + headers + b"\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        sizes = f"{len(head)} {len(head) + len(payload)}"
        connection.sendall(
            f"CONNECT {json.dumps(options)}\r\nHPUB {subject} {sizes}\r\n".encode()
            + head
            + payload
            + b"\r\nPING\r\n"
        )
        told = b""
        while b"PONG" not in told:
            told += connection.recv(4096)


HOSTILE = (
    "Nats-Msg-Id: grüße".encode(),
    b"Nats-Msg-Id: \xff",
    b"Ayllu-Expires: " + b"9" * 5000,
    "Ayllu-Expires: \u0661".encode(),
    b"X: \xff\xfe",
    b"no header",
)
UNANSWERABLE = (b"a" * 5000, "ä".encode(), b"a..b", b".", b"a\tb", b"ayllu.v1.x", b"a.>")


@pytest.mark.requirement("inbox-refused", "inbox-reply")
async def test_no_header_ends_an_executor_or_holds_up_an_agent(tmp_path: Path) -> None:
    async with (
        embedded_server(tmp_path / "nats") as server,
        connect(server.url) as bus,
        running_agents(bus) as agents,
    ):
        await agents.create("a")
        headers = [*HOSTILE, *(b"Ayllu-Reply-To: " + one for one in UNANSWERABLE)]
        for one in headers:
            await to_thread.run_sync(publish_raw, server.url, inbox_subject("a"), one, said("x"))
        await tell(bus, "a", said("right"), "right")
        await inbox_is_empty(bus, "a")
        turns = {turn.turn_id: turn.status async for turn in agents.turns.list("a")}
        assert len(turns) == len(HOSTILE) + 1
        assert turns["grüße"] is turns["\\xff"] is turns["right"] is TurnStatus.completed
        reasons = [letter.reason for letter in await letters(bus.storage)]
        assert len(reasons) == len(UNANSWERABLE)
        assert all(reason.startswith("no answer can be sent to") for reason in reasons)


@pytest.mark.requirement("inbox-reply")
async def test_an_answer_that_is_too_large_for_a_message_is_said_to_be(tmp_path: Path) -> None:
    async with beside_agents(tmp_path) as (client, agents):
        await agents.create("a")
        bus = agents.bus
        answers = await client.subscribe("answers")
        headers = {"Nats-Msg-Id": "large", "Ayllu-Reply-To": "answers"}
        payload = said("x" * (bus.transport.max_payload // 2))
        await client.request(inbox_subject("a"), payload, timeout=5, headers=headers)
        told = json.loads((await answers.next_msg(timeout=10)).data)
        assert (told["error"]["code"], told["turn_id"]) == ("too_large", "large")
        await inbox_is_empty(bus, "a")


@pytest.mark.requirement("inbox-durable", "inbox-events")
async def test_a_message_that_comes_again_much_later_only_asks_for_the_answer_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with local_bus() as bus, running_agents(bus) as agents:
        await agents.create("a")
        for name in ("one", "two"):
            await tell(bus, "a", said(name), name)
        await inbox_is_empty(bus, "a")
        monkeypatch.setattr("ayllu.bus.memory_streams.DUPLICATE_SECONDS", -1.0)
        await tell(bus, "a", said("one"), "one")
        await inbox_is_empty(bus, "a")
        streams = bus.storage.streams
        async with streams.replay(AGENTS.name, history_subject("a")) as entries:
            assert len([entry async for entry in entries]) == 2
        async with streams.replay("EVENTS") as entries:
            assert [entry.msg_id async for entry in entries] == ["ended a/one", "ended a/two"]


@pytest.mark.requirement("inbox-turn")
async def test_a_request_in_an_inbox_expires() -> None:
    async with local_bus() as bus:
        async with running_agents(bus, executors=0) as agents:
            await agents.create("a")
            for name, seconds in (("soon", 0.01), ("later", 60.0)):
                request = AgenticSystemExecuteRequest(
                    "a", [Message(role=Role.user, content=name)], expires_in=seconds
                )
                await tell(bus, "a", encode(request), name)
            await anyio.sleep(0.02)  # Its time goes by.
            await agents.executor()
            await inbox_is_empty(bus, "a")
            soon, later = [turn async for turn in agents.turns.list("a")]
        assert soon.error is not None
        assert soon.error.code == "deadline_exceeded"
        assert later.status is TurnStatus.completed


@pytest.mark.requirement("inbox-durable")
async def test_what_nobody_could_be_woken_for_is_not_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    append = MemoryStreams.append
    failed = 0

    async def full(self: MemoryStreams, subject: str, payload: bytes, **options: Any) -> Appended:
        nonlocal failed
        if subject == wake_subject("a") and failed < 2:
            failed += 1
            raise Overloaded("the stream AGENT_WAKE is full")
        return await append(self, subject, payload, **options)

    async def not_here(self: Executor, lane: str) -> bool:
        return False

    monkeypatch.setattr(MemoryStreams, "append", full)
    monkeypatch.setattr(Executor, "start", not_here)
    monkeypatch.setattr(inbox, "RETRY_SECONDS", 0.05)
    async with local_bus() as bus, running_agents(bus) as agents:
        await agents.create("a")
        await tell(bus, "a", said("hello"), "one")
        await inbox_is_empty(bus, "a")
        assert (await agents.turns.get("a", "one")).status is TurnStatus.completed
    assert failed == 2


@pytest.mark.requirement("inbox-order")
async def test_an_agent_is_busy_with_what_came_into_its_inbox() -> None:
    async with local_bus() as bus, running_agents(bus, executors=0) as agents:
        await agents.create("a")
        await tell(bus, "a", said("first"), "first")
        with pytest.raises(Conflict):
            await agents.system.execute(asked("a", "second", when_busy=WhenBusy.reject))


@pytest.mark.requirement("inbox-refused", "detached-turns")
async def test_a_message_takes_no_turn_away_that_stands_beside_the_others() -> None:
    never = anyio.Event()
    async with (
        local_bus() as bus,
        running_agents(bus, script=lambda *_: ["begun", never]) as agents,
    ):
        await agents.create("a")
        async with anyio.create_task_group() as tasks:
            request = asked("a", "x", turn_id="same", detached=True)
            tasks.start_soon(agents.system.execute, request)
            with anyio.fail_after(10):
                await agents.engine.wait_for(lambda engine: engine.running == 1)
            await tell(bus, "a", said("mine"), "same")
            await inbox_is_empty(bus, "a")
            tasks.cancel_scope.cancel()
        [letter] = await letters(bus.storage)
        assert "another turn of the agent has its id" in letter.reason
        turn = await agents.turns.get("a", "same")
        assert (turn.status, turn.user_messages[0].content) == (TurnStatus.running, "x")


@pytest.mark.requirement("detached-turns")
async def test_detached_turns_stand_beside_the_others() -> None:
    async with local_bus() as bus, running_agents(bus) as agents:
        await agents.create("a")

        async def take(number: int) -> None:
            answer = await agents.system.execute(
                AgenticSystemExecuteRequest(
                    "a",
                    [Message(role=Role.user, content=f"m{number}")],
                    turn_id=f"t{number}",
                    detached=number > 0,
                )
            )
            assert answer.turn.response_message.content == f"m{number}"

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(take, number)
        assert (await agents.turns.get("a", "t3")).status is TurnStatus.completed
        last = await agents.system.execute(
            AgenticSystemExecuteRequest("a", [Message(role=Role.user, content="last")])
        )
        assert last.turn.history is not None
        assert last.turn.history.turns == 1  # Only that of the turn which is not detached.
