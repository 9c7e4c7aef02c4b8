"""Attachments in chats, over a bus: what is fetched, how it is read, and what is refused before anybody is asked."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.content_server import OK, redirect, serving
from support.openai_double import ANSWER, running_double, streaming
from support.pdfs import document, pdf_of, stream

from ayllu.actors.attachments import fetched_messages
from ayllu.actors.attachments.pdf import pdf_text
from ayllu.actors.attachments.settings import AttachmentsConfig
from ayllu.actors.engines.engine import InferenceEngine
from ayllu.actors.engines.scripted import ScriptedEngine, script_from
from ayllu.actors.inference import InferenceActor
from ayllu.bus.bus import local_bus
from ayllu.bus.client import client
from ayllu.bus.service import serve
from ayllu.schemas import (
    Attachment,
    AylluError,
    BatchChatCompletionRequest,
    BatchCompletionRequest,
    ChatCompletionRequest,
    CompletionRequest,
    Content,
    Dialog,
    Inference,
    InvalidRequest,
    Message,
    NotFound,
    PermissionDenied,
    Role,
    TooLarge,
    ToolResponse,
    Unavailable,
    Unsupported,
)

pytestmark = pytest.mark.asyncio

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
TEXT = OK + b"Content-Type: text/plain; charset=latin-1\r\nContent-Length: 4\r\n\r\ngr\xfcn"


def typed(media_type: str, body: bytes) -> bytes:
    head = f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return OK + head.encode() + body


def data(mime_type: str, content: bytes) -> Attachment:
    return Attachment(f"data:;base64,{base64.b64encode(content).decode()}", mime_type)


def chat(content: Content, role: Role = Role.user) -> ChatCompletionRequest:
    return ChatCompletionRequest("m", Dialog(message=Message(role, content)))


@asynccontextmanager
async def serving_model(
    engine: InferenceEngine | None = None, **limits: Any
) -> AsyncIterator[tuple[Any, ScriptedEngine]]:
    """Serve a model over a bus."""
    scripted = ScriptedEngine(script_from("count:1"), context=100_000)
    async with local_bus() as bus, engine or scripted as running:
        actor = InferenceActor(running, "m", attachments=AttachmentsConfig(**limits))
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve, bus, actor)
            yield client(Inference, bus), scripted
            tasks.cancel_scope.cancel()


def read(engine: ScriptedEngine) -> str:
    """Return what the model was shown last."""
    prompt, _ = engine.prompts[-1]
    return prompt.messages[-1].text if prompt.text is None else prompt.text


async def refused(content: Content, **limits: Any) -> AylluError:
    """Return the error that a chat with a content ends with; the model has seen nothing."""
    with anyio.fail_after(10):
        async with serving_model(**limits) as (model, engine):
            try:
                await model.chat_completion(chat(content))
            except AylluError as error:
                assert not engine.prompts
                return error
    raise AssertionError("it was not refused")


@pytest.mark.requirement("attachments-fetched")
@pytest.mark.parametrize(
    ("mime_type", "answer", "expected"),
    [
        ("text/plain", TEXT, "grün"),
        ("text/markdown", typed("text/plain", b"# A"), "# A"),
        ("text/csv; charset=cp1252", typed("text/csv", b"\x80"), "€"),
        ("application/json", typed("application/octet-stream", b"{}"), "{}"),
        ("text/x-python", OK + b"Content-Length: 1\r\n\r\n1", "1"),
        ("text/html", typed("text/html; charset=utf-8", b"<h1>A</h1><p>b <b>c"), "# A\n\nb **c**"),
        ("application/pdf", typed("application/pdf", pdf_of("One page.", "Two.")), "One page.\n\nTwo."),
    ],
)  # fmt: skip
async def test_what_is_at_an_address_is_read(mime_type: str, answer: bytes, expected: str) -> None:
    async with (
        serving({"/x": answer}) as server,
        serving_model(private_hosts=[server.host]) as (
            model,
            engine,
        ),
    ):
        attachment = Attachment(f"http://{server.host}/x", mime_type)
        await model.chat_completion(chat(["see", attachment]))
        begin, first, rest = read(engine).split("\n", 2)
        assert begin == "see"
        assert first.startswith("[attachment of type ")
        assert rest.removesuffix("\n[end of attachment]").strip() == expected


@pytest.mark.requirement("attachments-fetched")
async def test_all_that_takes_content_fetches_it_once() -> None:
    async with (
        serving({"/x": TEXT}) as server,
        serving_model(private_hosts=[server.host]) as (
            model,
            engine,
        ),
    ):
        attachment = Attachment(f"http://{server.host}/x", "text/plain")
        message = Message(Role.user, [attachment, attachment])
        dialog = Dialog(message=message, message_history=[message])
        await model.chat_completion(ChatCompletionRequest("m", dialog))
        batch = BatchChatCompletionRequest(model="m", batch_dialogs=[dialog, dialog])
        assert len([one async for one in model.batch_chat_completion(batch)]) == 2
        assert len([one async for one in model.stream_chat_completion(chat(attachment))]) > 1
        await model.completion(CompletionRequest(model="m", content=attachment))
        texts = BatchCompletionRequest(model="m", content_batch=[attachment, attachment])
        assert len([one async for one in model.batch_completion(texts)]) == 2
        assert server.connections == 5
        assert all("grün" in read(engine) for _ in engine.prompts)


@pytest.mark.requirement("attachments-fetched")
async def test_messages_are_fetched_for_whoever_keeps_them() -> None:
    async with serving({"/x": TEXT, "/i": typed("image/png", PNG)}) as server:
        text = Attachment(f"http://{server.host}/x", "text/plain")
        image = Attachment(f"http://{server.host}/i", "image/*")
        other = Attachment(f"http://{server.host}/i", "audio/ogg")
        answer = ToolResponse("t", text)
        messages = [
            Message(Role.user, ["a", text, image, other]),
            Message(Role.tool, text, tool_responses=[answer]),
        ]
        limits = AttachmentsConfig(private_hosts=[server.host])
        found = await fetched_messages(messages, limits)
        plain = await fetched_messages(messages, limits, images=False)
        assert len(server.asked) == 3
    # What tools answer is not the user's, and what cannot be read is not fetched.
    assert found[1] is messages[1]
    url = f"data:text/plain;charset=utf-8;base64,{base64.b64encode('grün'.encode()).decode()}"
    shown = Attachment(f"data:image/png;base64,{base64.b64encode(PNG).decode()}", "image/png")
    assert found[0].content == ["a", Attachment(url, "text/plain"), shown, other]
    assert plain[0].content == ["a", Attachment(url, "text/plain"), image, other]
    assert await fetched_messages(found, AttachmentsConfig(max_count=0)) == found


PRIVATE = [
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0", "localhost",
    "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
    "[fe80::1]", "[fc00::1]", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
]  # fmt: skip
"""Of the machine itself, written in all ways; of networks; of a link."""


@pytest.mark.requirement("attachments-hostile")
@pytest.mark.parametrize("host", PRIVATE)
async def test_private_addresses_are_not_connected_to(host: str) -> None:
    # A server that is there, so that being refused is not being unreachable.
    async with serving({"/x": TEXT}) as server:
        attachment = Attachment(f"http://{host}:{server.port}/x", "text/plain")
        error = await refused(["a", attachment])
        assert server.connections == 0
    assert type(error) is PermissionDenied
    assert error.message.startswith("dialog.message.content[1]: ")


@pytest.mark.requirement("attachments-hostile")
async def test_a_name_that_is_another_address_a_moment_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A double of the resolver: first an address that is public (and of nobody), then the machine itself.
    told = [["2000::1"], ["127.0.0.1"], ["2000::1", "127.0.0.1"]]
    asked: list[str] = []
    loop = asyncio.get_running_loop()
    known = loop.getaddrinfo

    async def getaddrinfo(host: Any, port: Any, **values: Any) -> Any:
        name = host if isinstance(host, str) else host.decode()
        if name != "rebind.example":
            return await known(host, port, **values)
        asked.append(name)
        kinds = [(socket.AF_INET6 if ":" in one else socket.AF_INET, one) for one in told.pop(0)]
        return [(kind, socket.SOCK_STREAM, 6, "", (one, port)) for kind, one in kinds]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    async with serving({"/x": TEXT}) as server:
        attachment = Attachment(f"http://rebind.example:{server.port}/x", "text/plain")
        # The connection goes to what was checked: the name is not asked again.
        assert type(await refused(attachment, seconds=0.3)) is Unavailable
        assert len(asked) == 1
        assert type(await refused(attachment)) is PermissionDenied
        # One address that is private is enough.
        assert type(await refused(attachment)) is PermissionDenied
        assert server.connections == 0


@pytest.mark.requirement("attachments-hostile")
@pytest.mark.parametrize(
    ("path", "answer", "error"),
    [
        ("/x", redirect("http://127.0.0.1:1/"), PermissionDenied),
        ("/x", redirect("http://[::ffff:127.0.0.1]:1/"), PermissionDenied),
        ("/x", redirect("http://169.254.169.254/latest/meta-data/"), PermissionDenied),
        ("/x", redirect("file:///etc/passwd"), InvalidRequest),
        ("/x", redirect("data:,x"), InvalidRequest),
        ("/x", redirect("/x"), InvalidRequest),  # for ever
        ("/x", typed("text/plain", b"x" * 3000), TooLarge),
        ("/x", OK + b"\r\n" + b"x" * 3000, TooLarge),
        ("/endless", OK + b"\r\n" + b"x" * 500, TooLarge),
        ("/stall", OK + b"Content-Type: text/plain\r\n\r\nx", Unavailable),
        ("/stall", b"HTTP/1.1 200 OK\r\n", Unavailable),
        ("/x", typed("text/html", b"<p>Log in"), InvalidRequest),
        ("/x", typed("image/png", PNG), InvalidRequest),
        ("/x", typed("text/plain", b"\xff\xfe\xff"), InvalidRequest),
        ("/x", typed("text/plain; charset=punycode", b"x"), InvalidRequest),
        ("/x", b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n", InvalidRequest),
        ("/x", b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", Unavailable),
    ],
)
async def test_a_server_that_means_ill(path: str, answer: bytes, error: type[AylluError]) -> None:
    async with serving({path: answer}) as server:
        attachment = Attachment(f"http://{server.host}{path}", "text/plain")
        limits = {"private_hosts": [server.host], "max_bytes": 2000, "seconds": 0.5}
        found = await refused(["a", attachment], **limits)
        if path != "/x":
            await server.gone.wait()
    assert type(found) is error
    assert found.message.startswith("dialog.message.content[1]: ")


@pytest.mark.requirement("attachments-hostile")
async def test_types_that_contradict_each_other_are_both_named() -> None:
    async with serving({"/x": typed("text/html", b"<p>Log in")}) as server:
        attachment = Attachment(f"http://{server.host}/x", "text/csv")
        error = await refused(attachment, private_hosts=[server.host])
    assert "text/csv" in error.message
    assert "text/html" in error.message


@pytest.mark.requirement("attachments-hostile")
async def test_nothing_is_told_of_an_address_beyond_what_was_sent() -> None:
    listed = ["localhost:1"]
    error = await refused(Attachment("http://localhost:1/x", "text/plain"), private_hosts=listed)
    assert type(error) is Unavailable
    assert "127.0.0.1" not in error.message
    assert "::1" not in error.message


@pytest.mark.requirement("attachments-limits")
async def test_limits_of_a_request() -> None:
    answers = {f"/{n}": typed("text/plain", b"x" * 1000) for n in range(4)}
    async with serving(answers) as server:
        parts: list[str | Attachment] = [
            Attachment(f"http://{server.host}/{n}", "text/plain") for n in range(4)
        ]
        listed = [server.host]
        error = await refused(parts, private_hosts=listed, max_count=3)
        assert (type(error), server.connections) == (TooLarge, 0)
        assert error.message.startswith("dialog.message.content[3]: ")
        error = await refused(parts, private_hosts=listed, max_total_bytes=3500)
        assert type(error) is TooLarge
        async with serving_model(private_hosts=listed, max_total_bytes=3500) as (model, engine):
            batch = BatchChatCompletionRequest(
                model="m", batch_dialogs=[chat(part).dialog for part in parts]
            )
            with pytest.raises(TooLarge, match=r"batch_dialogs\[\d\]\.message\.content: "):
                await anext(aiter(model.batch_chat_completion(batch)))
            assert not engine.prompts


@pytest.mark.requirement("attachments-limits")
async def test_not_more_than_some_are_fetched_at_once_and_time_is_for_all() -> None:
    answers = {f"/stall{n}": OK + b"\r\n" for n in range(10)}
    async with serving(answers) as server:
        parts: list[str | Attachment] = [
            Attachment(f"http://{server.host}/stall{n}", "text/plain") for n in range(10)
        ]
        error = await refused(parts, private_hosts=[server.host], seconds=0.3)
        assert type(error) is Unavailable
        assert server.connections == 4


@pytest.mark.requirement("attachments-files")
async def test_files_below_the_roots_only(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside.txt"
    root.mkdir()
    outside.write_text("secret")
    (root / "a.txt").write_text("inside")
    (root / "link.txt").symlink_to(outside)
    (root / "large.txt").write_text("x" * 3000)
    os.mkfifo(root / "pipe.txt")
    cases: dict[str, type[AylluError]] = {
        f"file://{outside}": PermissionDenied,
        f"file://{root}/link.txt": PermissionDenied,
        f"file://{root}/../outside.txt": PermissionDenied,
        f"file://{root}/%2e%2e/outside.txt": PermissionDenied,
        "file:///etc/passwd": PermissionDenied,
        "file:///proc/self/environ": PermissionDenied,
        f"file://{root}/none.txt": NotFound,
        f"file://{root}/pipe.txt": InvalidRequest,
        f"file://{root}": InvalidRequest,
        f"file://host{root}/a.txt": InvalidRequest,
        f"file://{root}/large.txt": TooLarge,
    }
    for url, expected in cases.items():
        found = await refused(Attachment(url, "text/plain"), roots=[str(root)], max_bytes=2000)
        assert type(found) is expected
        assert str(tmp_path) not in found.message
    inside = Attachment(f"file://{root}/a.txt", "text/plain")
    assert type(await refused(inside)) is PermissionDenied
    async with serving_model(roots=[str(root)]) as (model, engine):
        await model.chat_completion(chat(inside))
        assert "inside" in read(engine)


@pytest.mark.requirement("attachments-images")
async def test_images_go_to_models_that_take_them() -> None:
    async with (
        running_double(streaming(*ANSWER)) as double,
        serving({"/i": typed("application/octet-stream", PNG)}) as server,
    ):
        limits = {"private_hosts": [server.host]}
        image = Attachment(f"http://{server.host}/i", "image/*")
        shown = {
            "type": "image_url",
            "image_url": {"url": f"data:image/png;base64,{base64.b64encode(PNG).decode()}"},
        }
        for tools in (True, False):
            engine = double.engine(images=True, tools=tools)
            async with serving_model(engine, **limits) as (model, _):
                content: Content = [
                    "What",
                    image,
                    "and",
                    data("image/png", PNG),
                    data("text/csv", b"a,b"),
                ]
                reply = await model.chat_completion(chat(content))
                assert reply.content == "Hello"
                await model.chat_completion(chat(image))
            first, only = (one.body["messages"][0]["content"] for one in double.asked[-2:])
            table = "[attachment of type text/csv]\na,b\n[end of attachment]"
            assert first == [
                {"type": "text", "text": "What"},
                shown,
                {"type": "text", "text": "and"},
                shown,
                {"type": "text", "text": table},
            ]
            assert only == [shown]


@pytest.mark.requirement("attachments-images")
@pytest.mark.parametrize(
    ("attachment", "error"),
    [
        (data("image/png", b"GIF89a" + bytes(20)), InvalidRequest),
        (data("image/jpeg", PNG), InvalidRequest),
        (data("image/*", b"<svg/>"), InvalidRequest),
        (data("image/png", b""), InvalidRequest),
        (Attachment("data:;base64,!!!!", "image/png"), InvalidRequest),
        (data("image/tiff", PNG), Unsupported),
        (data("audio/wav", PNG), Unsupported),
    ],
)
async def test_what_is_no_image(attachment: Attachment, error: type[AylluError]) -> None:
    async with running_double(streaming(*ANSWER)) as double:
        async with serving_model(double.engine(images=True)) as (model, _):
            with pytest.raises(AylluError) as found:
                await model.chat_completion(chat(["see", attachment]))
        assert not double.asked
    assert type(found.value) is error
    assert found.value.message.startswith("dialog.message.content[1]: ")


@pytest.mark.requirement("attachments-images")
async def test_images_are_not_even_fetched_for_other_models() -> None:
    async with serving({"/i": typed("image/png", PNG)}) as server:
        image = Attachment(f"http://{server.host}/i", "image/png")
        for shown in (image, data("image/png", PNG)):
            assert type(await refused(shown, private_hosts=[server.host])) is Unsupported
        assert server.connections == 0


@pytest.mark.requirement("attachments-pdf")
@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"<p>no PDF", InvalidRequest),
        (b"%PDF-1.7 nothing", InvalidRequest),
        (pdf_of("")[:300], InvalidRequest),
        (pdf_of(""), InvalidRequest),  # It has no text.
        (document([b"<< /Type /Catalog /Pages 1 0 R /Kids [1 0 R] >>"]), InvalidRequest),
        (
            # What is packed is a thousand times as large, and that a thousand times again.
            pdf_of("x").replace(
                stream(b"BT /F1 12 Tf 20 100 Td (x) Tj ET"),
                stream(
                    zlib.compress(zlib.compress(bytes(64 << 20), 9), 9),
                    "/Filter [/FlateDecode /FlateDecode]",
                ),
            ),
            InvalidRequest,
        ),
    ],
)
async def test_pdf_documents_that_mean_ill(content: bytes, error: type[AylluError]) -> None:
    with anyio.fail_after(30), pytest.raises(AylluError) as found:
        await pdf_text(content)
    assert isinstance(found.value, error)
    assert "/" not in found.value.message


@pytest.mark.requirement("attachments-pdf")
async def test_a_pdf_that_takes_too_long_is_ended() -> None:
    with pytest.raises(TooLarge):
        await pdf_text(pdf_of("x"), seconds=0.05)
    with pytest.raises(Unavailable):
        await pdf_text(pdf_of("x"), seconds=0.0)
