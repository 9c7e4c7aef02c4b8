"""Logs: a line a record, with the request that it belongs to, and without what clients say."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import anyio
import httpx2
import pytest
from support.gateway import running_gateway
from support.processes import AYLLU, SCRIPTED, read_ready_line

from ayllu.bus.context import CallContext, current_call
from ayllu.runtime.logs import CALL, JsonFormatter, TextFormatter, configure_logs
from ayllu.runtime.supervisor import open_listener, url_of
from ayllu.schemas import InvalidRequest, NotFound

TRACE = f"00-{'a' * 32}-{'b' * 16}-01"
MARKER = "Timbuktu-4711"


def record_of(message: str, *args: object, exc_info: object = None) -> logging.LogRecord:
    made = logging.getLogger("some.module").makeRecord(
        "some.module",
        logging.WARNING,
        __file__,
        1,
        message,
        args,
        exc_info,  # type: ignore[arg-type]
    )
    made.created = 1_700_000_000.125
    return made


def error_info() -> object:
    try:
        raise ValueError("the cause")
    except ValueError:
        return sys.exc_info()


@pytest.mark.requirement("logs-structured")
def test_a_json_line() -> None:
    line = JsonFormatter().format(record_of("a\n%s \ud800", "b"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.125Z",
        "level": "warning",
        "logger": "some.module",
        "message": "a\nb ?",
    }
    broken = json.loads(JsonFormatter().format(record_of("x", exc_info=error_info())))
    assert "ValueError: the cause" in broken["exception"]


@pytest.mark.requirement("logs-structured")
def test_a_text_line() -> None:
    line = TextFormatter().format(record_of("a\nb\r"))
    assert line == "2023-11-14T22:13:20.125Z WARNING some.module: a\\nb\\r"
    broken = TextFormatter().format(record_of("x", exc_info=error_info()))
    assert "ValueError: the cause" in broken


@pytest.mark.requirement("logs-request-id")
def test_what_an_actor_logs_belongs_to_the_call_that_it_works_on() -> None:
    token = current_call.set(CallContext(0, TRACE, "shapes.shout"))
    try:
        line = json.loads(JsonFormatter().format(record_of("x")))
        text = TextFormatter().format(record_of("x"))
    finally:
        current_call.reset(token)
    assert (line["request_id"], line["operation"]) == ("a" * 32, "shapes.shout")
    assert text.endswith(f"x [{'a' * 32}]")


def test_a_format_that_there_is_not() -> None:
    with pytest.raises(InvalidRequest):
        configure_logs("xml")


@pytest.mark.asyncio
@pytest.mark.requirement("logs-calls")
async def test_the_gateway_logs_one_line_for_each_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running_gateway() as gateway:
        await gateway.http.post(
            "/shapes/count", json={"to": 3, "stream": True}, headers={"traceparent": TRACE}
        )
        with pytest.raises(NotFound):
            await gateway.shapes.fail("known")
        with anyio.move_on_after(0.2):
            await gateway.http.post("/shapes/hang")
        await gateway.actor.idle.wait()
    lines = [getattr(one, CALL) for one in caplog.records if one.name == "ayllu.calls"]
    assert [(line["operation"], line["outcome"], line["events"]) for line in lines] == [
        ("shapes.count.stream", "ok", 3),
        ("shapes.fail", "not_found", 0),
        ("shapes.hang", "cancelled", 0),
    ]
    assert lines[0]["request_id"] == "a" * 32
    assert len({line["request_id"] for line in lines}) == 3
    assert all(line["ms"] > 0 for line in lines)


@pytest.mark.asyncio
@pytest.mark.requirement("http-traceparent")
@pytest.mark.parametrize("given", [TRACE, None, "00-x-y-01", f"00-{'0' * 32}-{'b' * 16}-01"])
async def test_an_http_answer_has_its_traceparent(given: str | None) -> None:
    headers = {} if given is None else {"traceparent": given}
    async with running_gateway() as gateway:
        for path in ("/shapes/context", "/shapes/fail?how=known", "/shapes/shout"):
            reply = await gateway.http.post(path, headers=headers)
            trace = reply.headers["traceparent"]
            assert (trace == given) == (given == TRACE)
            if reply.is_success:
                assert reply.json()["traceparent"] == trace


def start(port: str, config: Path, bus_url: str, log: Path) -> subprocess.Popen[str]:
    """Start a worker with all actors, whose log goes to a file."""
    kinds = ["worker", "inference", "gateway"]
    with log.open("w") as stderr:
        return subprocess.Popen(
            [AYLLU, "--log-format", "json", *kinds, "--config", str(config), "--port", port],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "AYLLU_BUS_URL": bus_url},
        )


@pytest.mark.asyncio
@pytest.mark.requirement("logs-structured", "logs-request-id", "logs-no-secrets")
async def test_real_processes_log_json_without_what_clients_said(
    tmp_path: Path, nats_url: str
) -> None:
    config, log = tmp_path / "ayllu.toml", tmp_path / "log"
    config.write_text(SCRIPTED)
    with open_listener("127.0.0.1", 0) as listener:
        url = url_of(listener)
    with start(url.rpartition(":")[2], config, nats_url, log) as process:
        try:
            read_ready_line(process)
            body = {"model": "echo", "dialog": {"message": {"role": "user", "content": MARKER}}}
            secret = {"Authorization": "Bearer " + MARKER, "traceparent": TRACE}
            async with httpx2.AsyncClient(base_url=url, headers=secret) as http:
                reply = await http.post("/chat_completion", json=body)
                assert MARKER in reply.text
                await http.post("/chat_completion", content=f'{{"{MARKER}": "{MARKER}"}}')
                await http.get(f"/{MARKER}")
        finally:
            process.terminate()
            process.wait(30)
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    calls = [line for line in lines if line["logger"] == "ayllu.calls"]
    assert [(line["operation"], line["outcome"]) for line in calls] == [("chat_completion", "ok")]
    assert calls[0]["request_id"] == "a" * 32
    assert all(line.keys() >= {"time", "level", "logger", "message"} for line in lines)
    assert MARKER not in text
    password = nats_url.partition("@")[0].rpartition(":")[2]
    assert len(password) > 8
    assert password not in text
