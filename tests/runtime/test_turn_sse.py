"""Turns as server-sent events: each has an id, and `Last-Event-ID` goes on after it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx2
import pytest
from support.agents import Agents, asked, running_agents
from support.gateway import running_gateway

from ayllu.actors.engines.scripted import Script, script_of
from ayllu.bus.bus import local_bus
from ayllu.runtime.config import GatewayConfig
from ayllu.runtime.gateway import serve_gateway
from ayllu.runtime.positions import Framing, has_positions
from ayllu.runtime.supervisor import open_listener, url_of
from ayllu.schemas import OPERATIONS

pytestmark = [pytest.mark.asyncio, pytest.mark.requirement("sse-last-event-id")]

EVENTS = "/agentic_system/turn/events"
TURN = {"agent_id": "a", "turn_id": "t"}


@dataclass
class Place:
    agents: Agents
    http: httpx2.AsyncClient


@asynccontextmanager
async def place(script: Script | str) -> AsyncIterator[Place]:
    """Run agents and a gateway, with an HTTP client."""
    with anyio.fail_after(30), open_listener("127.0.0.1", 0) as listener:
        async with local_bus() as bus, running_agents(bus, script=script) as agents:
            await agents.tasks.start(serve_gateway, bus, GatewayConfig(), listener)
            url = url_of(listener, tls=False)
            async with httpx2.AsyncClient(base_url=url, timeout=20) as http:
                yield Place(agents, http)


def parsed(text: str) -> list[tuple[str | None, dict[str, Any]]]:
    """Return the id and the data of each event, as the standard reads them."""
    found: list[tuple[str | None, dict[str, Any]]] = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if "data" in fields:
            found.append((fields.get("id"), json.loads(fields["data"])))
    return found


def ids(events: Sequence[tuple[str | None, dict[str, Any]]]) -> list[str | None]:
    return [id_ for id_, _ in events]


async def test_each_event_has_its_id_and_a_request_goes_on_after_it() -> None:
    async with place("echo") as running:
        await running.agents.create("a")
        await running.agents.system.execute(asked("a", "one two three", turn_id="t"))
        reply = await running.http.get(EVENTS, params=TURN)
        assert reply.headers["content-type"].startswith("text/event-stream")
        events = parsed(reply.text)
        last = len(events) - 2  # The last one is the whole turn, and adds no event.
        assert ids(events) == [*(f"1.{index}" for index in range(last + 1)), f"1.{last}"]
        assert [event["index"] for _, event in events] == list(range(last + 2))
        for number in range(last + 1):
            headers = {"Last-Event-ID": f"1.{number}"}
            rest = await running.http.get(EVENTS, params=TURN, headers=headers)
            assert parsed(rest.text) == events[number + 1 :]
        # The header is newer than the address, which an EventSource keeps.
        again = await running.http.get(
            EVENTS, params={**TURN, "epoch": 1, "index": 1}, headers={"Last-Event-ID": "1.3"}
        )
        assert parsed(again.text) == events[4:]
        empty = await running.http.get(EVENTS, params=TURN, headers={"Last-Event-ID": ""})
        assert parsed(empty.text) == events


async def test_a_connection_that_breaks_in_mid_turn_is_gone_on_with() -> None:
    gate = anyio.Event()
    async with place(script_of({"": ["one", " two", gate, " three"]})) as running:
        await running.agents.create("a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(running.agents.system.execute, asked("a", "Count.", turn_id="t"))
            text, seen = "", ""
            while not seen.endswith(" two"):  # It may not be there yet.
                async with running.http.stream("GET", EVENTS, params=TURN) as reply:
                    text = ""
                    async for part in reply.aiter_text():
                        text += part
                        seen = "".join(
                            event["event"].get("response_text_delta", "")
                            for _, event in parsed(text)
                            if "event" in event
                        )
                        if seen.endswith(" two"):
                            break
            before = parsed(text)
            gate.set()
            last = ids(before)[-1]
            assert last is not None
            reply = await running.http.get(EVENTS, params=TURN, headers={"Last-Event-ID": last})
            after = parsed(reply.text)
            indexes = [event["index"] for _, event in before + after]
            assert indexes == list(range(len(indexes)))
            assert after[0][1]["event"]["response_text_delta"] == " three"


async def test_a_position_that_is_gone_is_told_under_an_id_to_go_on_after() -> None:
    async with place("echo") as running:
        await running.agents.create("a")
        await running.agents.system.execute(asked("a", "one two", turn_id="t"))
        headers = {"Last-Event-ID": "7.2"}
        events = parsed((await running.http.get(EVENTS, params=TURN, headers=headers)).text)
        [id_, first] = events[0]
        assert first["recovered"] is False
        assert id_ == f"{first['epoch']}.{first['index'] - 1}"
        assert id_ is not None
        following = await running.http.get(EVENTS, params=TURN, headers={"Last-Event-ID": id_})
        assert parsed(following.text) == events[1:]


@pytest.mark.parametrize("text", ["x", "1", "1.", ".1", "1.-1", "1.1.1", "\u0661.\u0661", "9" * 20])
async def test_an_id_that_is_none_is_refused(text: str) -> None:
    async with running_gateway() as gateway:
        headers = [(b"Last-Event-ID", text.encode())]
        reply = await gateway.http.get(EVENTS, params=TURN, headers=headers)
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert error["code"] == "invalid_request"
        assert "<epoch>.<index>" in error["message"]


async def test_only_what_can_be_followed_from_a_position_has_ids() -> None:
    found = [name for name, operation in OPERATIONS.items() if has_positions(operation)]
    assert found == ["agentic_system.turn.events"]
    async with running_gateway() as gateway:  # For all others, the header is nothing to us.
        body = {"to": 1, "stream": True}
        headers = {"Last-Event-ID": "nonsense"}
        reply = await gateway.http.post("/shapes/count", json=body, headers=headers)
        assert reply.text.startswith('data: {"value":0}\n\n')


async def test_what_an_actor_of_another_kind_sends_goes_through() -> None:
    assert Framing().frame(b'{"x":1}') == b'data: {"x":1}\n\n'
    assert Framing().frame(b'{"epoch":1,"index":0}') == b'data: {"epoch":1,"index":0}\n\n'


@pytest.mark.requirement("team-events")
async def test_ids_say_what_was_told_of_turns_below_until_their_step_has_ended() -> None:
    framing = Framing()
    seen = f"{'a' * 32}:1.4,{'b' * 32}:-"

    def id_of(**event: Any) -> bytes:
        text = framing.frame(json.dumps({"epoch": 1, **event}).encode())
        return text.partition(b"\n")[0].removeprefix(b"id: ")

    progress, end = {"event_type": "step_progress"}, {"event_type": "step_end"}
    assert id_of(index=3, event=progress) == b"1.3"
    assert id_of(index=4, event=None, child={"children": seen}) == b"1.3/" + seen.encode()
    assert id_of(index=4, event=progress) == b"1.4/" + seen.encode()
    assert id_of(index=5, event=None, child={"children": "what is this"}) == b"1.4"
    assert id_of(index=5, event=None, child={"children": seen}) == b"1.4/" + seen.encode()
    assert id_of(index=5, event=end) == b"1.5"
    assert id_of(index=6, event=progress) == b"1.6"


@pytest.mark.requirement("team-events")
async def test_what_a_reader_knows_of_turns_below_is_still_in_ids_when_it_goes_on() -> None:
    async with place("echo") as running:
        await running.agents.create("a")
        await running.agents.system.execute(asked("a", "one two", turn_id="t"))
        seen = f"{'a' * 32}:1.4"
        headers = {"Last-Event-ID": f"1.0/{seen}"}
        first, *_, last = parsed(
            (await running.http.get(EVENTS, params=TURN, headers=headers)).text
        )
        assert first[0] == f"1.1/{seen}"
        assert last[0] is not None
        assert "/" not in last[0]
