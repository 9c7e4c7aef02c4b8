"""Pictures: a double of an OpenAI-compatible server, what it answers, and what it may not."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.web_double import (
    Act,
    WebDouble,
    closed_port,
    dripping,
    endless,
    raw,
    reply,
    stalling,
    web_double,
)

from ayllu.actors.tools import web_api
from ayllu.actors.tools.actor import ToolsActor
from ayllu.actors.tools.builtin import builtin_tools
from ayllu.actors.tools.image_gen import MAX_IMAGE
from ayllu.actors.tools.settings import ImageGenSettings, ToolsConfig
from ayllu.schemas import (
    Attachment,
    AylluError,
    BuiltinTool,
    Content,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    PermissionDenied,
    TooLarge,
    ToolRequest,
    Unavailable,
    Unsupported,
)

KEY = "s3cret-k3y"
VARIABLE = "IMAGE_TEST_KEY"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(20)
PICTURES = {
    "image/png": PNG,
    "image/jpeg": b"\xff\xd8\xff\xe0" + bytes(20),
    "image/gif": b"GIF89a" + bytes(20),
    "image/webp": b"RIFF\x10\0\0\0WEBP" + bytes(8),
}

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.setattr(web_api, "FIRST_PAUSE", 0.01)


def image(data: bytes) -> Act:
    return reply({"created": 1, "data": [{"b64_json": base64.b64encode(data).decode()}]})


@asynccontextmanager
async def drawing(url: str, **values: Any) -> AsyncIterator[ToolsActor]:
    values = {"model": "painter", "key_variable": VARIABLE, "seconds": 5.0, **values}
    config = ToolsConfig(
        builtin=[BuiltinTool.image_gen], image_gen=ImageGenSettings(url=url, **values)
    )
    async with builtin_tools(config) as tools:
        yield ToolsActor(tools)


async def draw(actor: ToolsActor, prompt: str = "a llama") -> Content:
    return (await actor.call(ToolRequest("image_gen", {"prompt": prompt}))).content


async def failed(*acts: Act, error: type[AylluError], **values: Any) -> WebDouble:
    async with web_double(*acts, path="/v1") as double, drawing(double.url, **values) as actor:
        with pytest.raises(AylluError) as raised:
            await draw(actor)
    assert type(raised.value) is error
    for secret in (KEY, double.host):
        assert secret not in raised.value.message
    return double


@pytest.mark.requirement("tool-images", "tool-keys")
@pytest.mark.parametrize("mime_type", PICTURES)
async def test_a_picture_comes_back_as_what_it_is(mime_type: str) -> None:
    data = PICTURES[mime_type]
    async with web_double(image(data), path="/v1/") as double, drawing(double.url) as actor:
        content = await draw(actor)
    url = f"data:{mime_type};base64,{base64.b64encode(data).decode()}"
    text = f"The picture was made: {mime_type}, {len(data)} bytes."
    assert content == [text, Attachment(url, mime_type)]
    [asked] = double.asked
    assert (asked.method, asked.path) == ("POST", "/v1/images/generations")
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["content-type"] == "application/json"
    assert asked.body == {
        "model": "painter",
        "prompt": "a llama",
        "n": 1,
        "size": "1024x1024",
        "response_format": "b64_json",
    }


@pytest.mark.requirement("tool-images")
@pytest.mark.parametrize("model", ["gpt-image-1", "openai/gpt-image-1-mini"])
async def test_models_that_refuse_a_format_are_asked_for_none(model: str) -> None:
    async with web_double(image(PNG)) as double:
        async with drawing(double.url, model=model, size="", key_variable=None) as actor:
            await draw(actor)
    [asked] = double.asked
    assert asked.body == {"model": model, "prompt": "a llama", "n": 1}
    assert "authorization" not in asked.headers


@pytest.mark.requirement("tool-images")
async def test_a_picture_at_an_address_is_fetched_from_where_it_may() -> None:
    async with web_double(reply(PNG, 200, {"Content-Type": "text/html"})) as store:
        act = reply({"data": [{"url": f"{store.url}/picture"}]})
        async with web_double(act) as double:
            async with drawing(double.url, private_hosts=[store.host]) as actor:
                content = await draw(actor)
            assert isinstance(content, list)
            assert isinstance(content[1], Attachment)
            assert content[1].mime_type == "image/png"
            # The key is for the one who makes pictures.
            assert "authorization" not in store.asked[0].headers
            async with drawing(double.url) as actor:
                with pytest.raises(PermissionDenied):
                    await draw(actor)
        assert len(store.asked) == 1


@pytest.mark.requirement("tool-images", "tool-web-bounded")
@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("http://169.254.169.254/latest/meta-data", PermissionDenied),
        ("http://127.0.0.1:22/", PermissionDenied),
        ("http://[::1]/", PermissionDenied),
        ("http://[::ffff:127.0.0.1]/", PermissionDenied),
        ("file:///etc/passwd", InvalidRequest),
        ("data:image/png;base64,AAAA", InvalidRequest),
        ("https://user:password@a.example/", InvalidRequest),
        ("x", InvalidRequest),
    ],
)
async def test_an_address_that_leads_elsewhere_is_not_fetched(
    address: str, error: type[AylluError]
) -> None:
    await failed(reply({"data": [{"url": address}]}), error=error)


@pytest.mark.requirement("tool-images", "tool-web-bounded")
@pytest.mark.parametrize("body", [b"x" * 20, b"<svg/>" * 9, b"<html>", b"", b"RIFF\0\0\0\0WAVE"])
async def test_what_is_no_image_is_refused(body: bytes) -> None:
    await failed(image(body), error=Unavailable)


@pytest.mark.requirement("tool-images", "tool-web-bounded", "tool-keys")
@pytest.mark.parametrize(
    ("act", "error", "tries"),
    [
        (reply(b"garbage"), Unavailable, 1),
        (reply({}), Unavailable, 1),
        (reply({"data": []}), Unavailable, 1),
        (reply({"data": [{}]}), Unavailable, 1),
        (reply({"data": [{"b64_json": 5}]}), Unavailable, 1),
        (reply({"data": [{"b64_json": "*"}]}), Unavailable, 1),
        (reply({"data": [{"b64_json": "ñ"}]}), Unavailable, 1),
        (reply(b"[" * 100_000), Unavailable, 1),
        (image(PNG + bytes(MAX_IMAGE)), TooLarge, 1),
        (endless, TooLarge, 1),
        (raw(b""), Unavailable, 1),
        (reply({"error": {"message": f"the key {KEY} may not"}}, 401), Unavailable, 1),
        (reply({"error": {"message": f"{KEY}: unsafe prompt"}}, 400), InvalidRequest, 1),
        # Who knows what was made of it: it is not asked for twice.
        (reply({"error": "x"}, 500, {"Retry-After": "0"}), Unavailable, 1),
        (reply({"error": "x"}, 503), Unavailable, 1),
        # This was not begun.
        (reply({"error": "x"}, 429, {"Retry-After": "0"}), Overloaded, 3),
    ],
)
async def test_hostile_answers(act: Act, error: type[AylluError], tries: int) -> None:
    assert len((await failed(act, error=error)).asked) == tries


@pytest.mark.requirement("tool-web-bounded")
@pytest.mark.parametrize("act", [stalling, dripping])
async def test_a_slow_answer_ends_at_the_deadline(act: Act) -> None:
    assert len((await failed(act, error=DeadlineExceeded, seconds=0.3)).asked) == 1
    async with web_double(act) as store:
        found = reply({"data": [{"url": store.url}]})
        await failed(found, error=DeadlineExceeded, seconds=0.3, private_hosts=[store.host])


@pytest.mark.requirement("tool-web-bounded")
async def test_a_server_that_is_away() -> None:
    async with closed_port() as url, drawing(url) as actor:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await draw(actor)


@pytest.mark.requirement("tool-settings", "tool-keys")
async def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async with builtin_tools(ToolsConfig(builtin=[BuiltinTool.image_gen])) as tools:
        with pytest.raises(Unsupported, match=r"\[tools.image_gen\]"):
            await draw(ToolsActor(tools))
    monkeypatch.delenv(VARIABLE)
    async with drawing("http://127.0.0.1:1") as actor:
        with pytest.raises(Unsupported, match=VARIABLE):
            await draw(actor)


@pytest.mark.requirement("tool-images")
async def test_it_may_not_be_made_again() -> None:
    async with drawing("http://127.0.0.1:1") as actor:
        assert b'"idempotent":true' not in actor.service_metadata["tools"].encode()
