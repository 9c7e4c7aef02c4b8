"""The gateway's HTTP side, on a real socket."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from support.gateway import running_gateway

from ayllu.actors.engines.scripted import ScriptedEngine, script_of
from ayllu.actors.inference import InferenceActor
from ayllu.runtime.config import GatewayConfig
from ayllu.schemas import Overloaded

pytestmark = pytest.mark.asyncio


DEEP = b'{"available_tools":[{"tool_name":"t","parameters":' + b'{"a":' * 100_000


def error_of(body: str | bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(body)["error"]
    return found


@pytest.mark.requirement("http-routes")
async def test_scalars_come_in_the_query_and_requests_in_the_body() -> None:
    async with running_gateway() as gateway:
        reply = await gateway.http.post("/shapes/shout", params={"text": "a b", "times": "2"})
        assert (reply.status_code, reply.json()) == (200, "A BA B")
        assert reply.headers["content-type"] == "application/json"
        reply = await gateway.http.post("/shapes/count/", json={"to": 2})
        assert reply.json() == {"values": [0, 1]}


@pytest.mark.requirement("http-streams")
async def test_a_list_is_jsonl() -> None:
    async with running_gateway() as gateway:
        reply = await gateway.http.post("/shapes/list", json={"to": 2})
        assert reply.headers["content-type"] == "application/jsonl"
        assert [json.loads(line) for line in reply.text.splitlines()] == [
            {"value": 0},
            {"value": 1},
        ]
        reply = await gateway.http.post("/shapes/list", json={"to": 0})
        assert (reply.status_code, reply.text) == (200, "")
        reply = await gateway.http.post("/shapes/list", json={"to": 9, "fail_at": 1})
        assert error_of(reply.text.splitlines()[-1])["code"] == "not_found"


@pytest.mark.requirement("http-streams", "stream-flag")
async def test_a_stream_is_server_sent_events() -> None:
    async with running_gateway() as gateway:
        reply = await gateway.http.post("/shapes/count", json={"to": 2, "stream": True})
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.text == (
            'data: {"value":0}\n\ndata: {"value":1}\n\nevent: result\ndata: {"values":[0,1]}\n\n'
        )
        reply = await gateway.http.post(
            "/shapes/count", json={"to": 2, "stream": True, "fail_at": 1}
        )
        last = reply.text.split("\n\n")[-2].splitlines()
        assert last[0] == "event: error"
        assert error_of(last[1].removeprefix("data: "))["code"] == "not_found"


@pytest.mark.requirement("http-streams")
async def test_an_error_before_the_first_event_has_its_own_status() -> None:
    async with running_gateway() as gateway:
        reply = await gateway.http.post(
            "/shapes/count", json={"to": 2, "stream": True, "fail_at": 0}
        )
        assert (reply.status_code, error_of(reply.text)["code"]) == (404, "not_found")


@pytest.mark.requirement("http-streams")
async def test_the_end_of_the_connection_cancels_the_call() -> None:
    async with running_gateway() as gateway:
        async with gateway.http.stream("POST", "/shapes/stall", params={"after": 2}) as reply:
            lines = reply.aiter_lines()
            assert [await anext(lines), await anext(lines)] == ["0", "1"]
        await gateway.actor.idle.wait()
        with anyio.move_on_after(0.3):
            await gateway.http.post("/shapes/hang")
        await gateway.actor.idle.wait()


@pytest.mark.requirement("one-error-tree")
async def test_errors_have_one_shape_and_the_right_status() -> None:
    async with running_gateway() as gateway:
        http = gateway.http
        cases = [
            (await http.get("/nothing"), 404, "not_found"),
            (await http.get("/shapes/shout"), 405, "method_not_allowed"),
            (await http.post("/shapes/fail", params={"how": "known"}), 404, "not_found"),
            (await http.post("/shapes/fail", params={"how": "?"}), 500, "internal"),
            (await http.get("/datasets/get", params={"dataset_id": "x"}), 503, "unavailable"),
        ]
        for reply, status, code in cases:
            assert (reply.status_code, error_of(reply.text)["code"]) == (status, code)
            assert "Traceback" not in reply.text
            assert "secret" not in reply.text
        assert error_of(cases[-1][0].text)["retryable"] is True


@pytest.mark.requirement("bad-input")
async def test_bad_input_names_the_place() -> None:
    chat = {"model": "m", "dialog": {"message": {"role": "user", "content": "hi"}}}
    async with running_gateway() as gateway:
        http = gateway.http
        for reply, place in [
            (await http.post("/shapes/shout"), "`text`"),
            (await http.post("/shapes/shout", params={"text": "x", "x": "1"}), "`x`"),
            (await http.post("/shapes/shout?text=a&text=b"), "twice"),
            (await http.post("/shapes/shout", params={"text": "x", "times": "many"}), "`times`"),
            (await http.post("/shapes/count", content=b"{"), "malformed"),
            (await http.post("/chat_completion", content=DEEP), "malformed"),
            (await http.post("/shapes/count", json={"to": "x"}), "$.to"),
            (await http.post("/shapes/count", json={"to": 1, "too": 1}), "too"),
            (await http.post("/chat_completion", json={**chat, "max_tokens": -1}), "$.max_tokens"),
            (await http.post("/shapes/hang", headers={"Ayllu-Timeout": "soon"}), "Ayllu-Timeout"),
        ]:
            assert reply.status_code == 400, reply.text
            assert place in error_of(reply.text)["message"]


@pytest.mark.requirement("deadline-everywhere")
async def test_a_deadline() -> None:
    async with running_gateway() as gateway:
        reply = await gateway.http.post("/shapes/hang", headers={"Ayllu-Timeout": "0.1"})
        assert (reply.status_code, error_of(reply.text)["code"]) == (504, "deadline_exceeded")


@pytest.mark.requirement("retry-after")
@pytest.mark.parametrize("stream", [False, True])
async def test_an_actor_without_capacity_says_when_to_come_back(stream: bool) -> None:
    full = Overloaded("full", details={"retry_after": 2.5})
    async with ScriptedEngine(script_of({"": [full]})) as engine:
        async with running_gateway(InferenceActor(engine, name="m")) as gateway:
            body = {"model": "m", "content": "x", "stream": stream}
            reply = await gateway.http.post("/completion", json=body)
            assert (reply.status_code, error_of(reply.text)["code"]) == (429, "overloaded")
            assert reply.headers["retry-after"] == "3"


@pytest.mark.requirement("trace-context")
async def test_a_trace_is_joined() -> None:
    async with running_gateway() as gateway:
        trace = f"00-{'a' * 32}-{'b' * 16}-01"
        reply = await gateway.http.post("/shapes/context", headers={"traceparent": trace})
        assert reply.json()["traceparent"] == trace


@pytest.mark.requirement("bad-input")
async def test_a_body_that_is_too_large_is_refused() -> None:
    async with running_gateway(config=GatewayConfig(max_message_bytes=1000)) as gateway:
        reply = await gateway.http.post("/shapes/count", content=b"x" * 2000)
        assert (reply.status_code, error_of(reply.text)["code"]) == (413, "too_large")


@pytest.mark.requirement("documents-served")
async def test_documents() -> None:
    async with running_gateway() as gateway:
        for name, begins in [
            ("openapi.yaml", "openapi: 3.1"),
            ("asyncapi.yaml", "asyncapi: 3"),
            ("openapi.html", "<!doctype html>"),
        ]:
            reply = await gateway.http.get(f"/{name}")
            assert reply.status_code == 200
            assert reply.text.lower().startswith(begins)
        root = await gateway.http.get("/")
        assert (root.status_code, root.headers["location"]) == (307, "/openapi.html")
