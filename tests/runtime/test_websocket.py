"""The gateway's websocket, on a real socket."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import anyio
import msgspec
import pytest
from support.gateway import running_gateway
from support.shapes import CountRequest, Numbers
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from ayllu.bus.transport import Message, ServiceInfo
from ayllu.runtime.config import GatewayConfig
from ayllu.runtime.forwarding import checked
from ayllu.schemas import (
    BusError,
    CompletionRequest,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    Unavailable,
    decode,
)
from ayllu.schemas.proxy import EventStream

pytestmark = pytest.mark.asyncio


async def ask(
    websocket: ClientConnection, method: str, params: object = None, id_: object = 1
) -> None:
    frame = {"jsonrpc": "2.0", "id": id_, "method": method, "params": params or {}}
    await websocket.send(msgspec.json.encode(frame).decode())


async def answer(websocket: ClientConnection) -> dict[str, object]:
    read: dict[str, object] = msgspec.json.decode(await websocket.recv())
    return read


@pytest.mark.requirement("jsonrpc-websocket")
async def test_calls_of_every_shape() -> None:
    async with running_gateway() as gateway:
        shapes = gateway.shapes
        assert await shapes.shout("hey", times=2) == "HEYHEY"
        assert await shapes.count(CountRequest(to=2)) == Numbers(values=[0, 1])
        stream = shapes.stream_count(CountRequest(to=1000))
        assert [number.value async for number in stream] == list(range(1000))
        assert isinstance(stream, EventStream)
        assert stream.result is not None
        assert decode(stream.result, Numbers).values == list(range(1000))
        assert [number.value async for number in shapes.list(CountRequest(to=3))] == [0, 1, 2]
        with pytest.raises(NotFound):
            await shapes.fail("known")


@pytest.mark.requirement("jsonrpc-websocket")
async def test_the_frames_are_json_rpc() -> None:
    async with running_gateway() as gateway, open_websocket(gateway.websocket_url) as websocket:
        await ask(websocket, "shapes.count.stream", {"to": 2}, "a")
        events: list[object] = []
        while "result" not in (frame := await answer(websocket)):
            assert frame["method"] == "event"
            params = frame["params"]
            assert isinstance(params, dict)
            assert (params["id"], params["index"]) == ("a", len(events))
            events += params["events"]
        assert events == [{"value": 0}, {"value": 1}]
        assert frame == {"jsonrpc": "2.0", "id": "a", "result": {"values": [0, 1]}}
        await ask(websocket, "shapes.list", {"to": 2}, 5)
        while "result" not in (frame := await answer(websocket)):
            pass
        assert frame["result"] == {"count": 2}


@pytest.mark.requirement("jsonrpc-websocket")
async def test_many_calls_share_a_socket() -> None:
    async with running_gateway() as gateway:
        counts: list[int] = []

        async def follow(to: int) -> None:
            counts.append(sum([1 async for _ in gateway.shapes.stream_count(CountRequest(to=to))]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gateway.shapes.hang)
            async with anyio.create_task_group() as counting:
                for to in range(1, 100):
                    counting.start_soon(follow, to)
            tasks.cancel_scope.cancel()
        assert sorted(counts) == list(range(1, 100))
        await gateway.actor.idle.wait()


@pytest.mark.requirement("jsonrpc-cancel")
async def test_a_cancelled_call_answers_cancelled_and_stops_the_work() -> None:
    async with running_gateway() as gateway, open_websocket(gateway.websocket_url) as websocket:
        await ask(websocket, "shapes.stall", {"after": 1}, "a")
        await answer(websocket)
        await websocket.send('{"jsonrpc":"2.0","method":"$/cancel","params":{"id":"a"}}')
        frame = await answer(websocket)
        assert frame["id"] == "a"
        assert isinstance(frame["error"], dict)
        assert frame["error"]["data"]["code"] == "cancelled"
        await gateway.actor.idle.wait()
        await ask(websocket, "shapes.shout", {"text": "still here"}, "a")
        assert (await answer(websocket))["result"] == "STILL HERE"


@pytest.mark.requirement("disconnect-cancels-inference")
async def test_a_disconnect_cancels_the_calls() -> None:
    async with running_gateway() as gateway:
        async with open_websocket(gateway.websocket_url) as websocket:
            await ask(websocket, "shapes.hang")
            await gateway.actor.started.wait()
        await gateway.actor.idle.wait()


@pytest.mark.requirement("deadline-everywhere")
async def test_a_deadline() -> None:
    async with running_gateway() as gateway, open_websocket(gateway.websocket_url) as websocket:
        await websocket.send('{"jsonrpc":"2.0","id":1,"method":"shapes.hang","timeout":0.1}')
        frame = await answer(websocket)
        assert isinstance(frame["error"], dict)
        assert frame["error"]["data"]["code"] == DeadlineExceeded.code
        await gateway.actor.idle.wait()


@pytest.mark.requirement("exchange-absent-responder")
async def test_operations_without_an_actor_are_unavailable() -> None:
    async with running_gateway() as gateway:
        with pytest.raises(Unavailable):
            await gateway.stack.datasets.get(dataset_id="x")
        with pytest.raises(Unavailable):
            await gateway.stack.post_training.job.status(job_uuid="x")
        with pytest.raises(Unavailable):
            await gateway.stack.completion(CompletionRequest(model="m", content="x"))


@pytest.mark.requirement("bad-input")
async def test_a_binary_frame_is_read_like_a_text_frame() -> None:
    async with running_gateway() as gateway, open_websocket(gateway.websocket_url) as websocket:
        await websocket.send(
            b'{"jsonrpc":"2.0","id":1,"method":"shapes.shout","params":{"text":"x"}}'
        )
        assert (await answer(websocket))["result"] == "X"
        await websocket.send(b"\xff")
        assert (await answer(websocket))["id"] is None


@pytest.mark.requirement("bad-input")
async def test_a_frame_that_is_too_large_closes_the_connection_with_1009() -> None:
    config = GatewayConfig(max_message_bytes=1000)
    async with running_gateway(config=config) as gateway:
        async with open_websocket(gateway.websocket_url) as websocket:
            await websocket.send("x" * 2000)
            with pytest.raises(ConnectionClosed) as closed:
                await websocket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009


async def test_the_subprotocol_is_answered() -> None:
    async with running_gateway() as gateway:
        offered = [Subprotocol("other"), Subprotocol("ayllu.v1")]
        async with open_websocket(gateway.websocket_url, subprotocols=offered) as websocket:
            assert websocket.subprotocol == "ayllu.v1"
        async with open_websocket(gateway.websocket_url) as websocket:
            assert websocket.subprotocol is None


async def test_too_many_calls_on_one_connection() -> None:
    config = GatewayConfig(max_calls_per_connection=1)
    async with running_gateway(config=config) as gateway:
        async with open_websocket(gateway.websocket_url) as websocket:
            await ask(websocket, "shapes.hang", id_=1)
            await ask(websocket, "shapes.hang", id_=2)
            frame = await answer(websocket)
            assert frame["id"] == 2
            assert isinstance(frame["error"], dict)
            assert frame["error"]["data"]["code"] == "overloaded"


@pytest.mark.requirement("slow-websocket-client")
async def test_a_client_that_takes_nothing_is_dropped_and_others_go_on() -> None:
    config = GatewayConfig(write_timeout=0.5)
    async with (
        running_gateway(config=config) as gateway,
        open_websocket(
            gateway.websocket_url, max_queue=1, max_size=None, close_timeout=0.1
        ) as slow,
    ):
        await ask(slow, "shapes.count.stream", {"to": 100_000, "size": 10_000})
        await gateway.actor.started.wait()
        assert await gateway.shapes.shout("quick") == "QUICK"
        await gateway.actor.idle.wait()
        assert gateway.actor.produced < 100_000


async def test_a_wrong_request_is_refused_before_it_is_sent() -> None:
    async with running_gateway() as gateway:
        with pytest.raises(InvalidRequest):
            await gateway.shapes.shout(text=3)  # type: ignore[arg-type]


@pytest.mark.requirement("foreign-bytes-checked")
@pytest.mark.parametrize("data", [b'{"a":\xff\xfe}', b'}],"x":[{', b"", b"1,2", b"1],[2"])
async def test_what_is_no_json_from_an_actor_fails_its_call_alone(data: bytes) -> None:
    async with running_gateway() as gateway:

        def answer_badly(message: Message) -> None:
            async def send() -> None:
                for kind, payload in (
                    ("a", b'{"control":"x"}'),
                    ("d", data),
                    ("e", b'{"count":1}'),
                ):
                    await gateway.bus.transport.publish(f"{message.reply}.{kind}", payload)

            tasks.start_soon(send)

        subject = "ayllu.v1.op.datasets.get"
        async with (
            anyio.create_task_group() as tasks,
            gateway.bus.transport.subscribe(subject, answer_badly),
        ):
            with pytest.raises(BusError):
                await gateway.stack.datasets.get(dataset_id="x")
            reply = await gateway.http.get("/datasets/get", params={"dataset_id": "x"})
            assert reply.status_code == 503
            assert await gateway.shapes.shout("still here") == "STILL HERE"


async def test_json_of_several_lines_is_forwarded_as_one() -> None:
    assert checked([b'{\n"a": "b\\n"\r\n}', b"1"]) == [b'{ "a": "b\\n"  }', b"1"]


@pytest.mark.requirement("foreign-bytes-checked")
async def test_events_that_are_json_only_together_come_back_as_values() -> None:
    assert checked([b"1,2", b'"a', b'b"']) == [b"1", b"2", b'"a,b"']
    with pytest.raises(BusError):
        checked([b'"a', b'b"'])


@pytest.mark.requirement("models-listed")
async def test_a_service_that_describes_its_models_wrongly_is_passed_over() -> None:
    async with running_gateway() as gateway:
        for models in ("", "[{}]", "nonsense"):
            impostor = ServiceInfo("inference", "1.0.0", metadata={"models": models})
            async with gateway.bus.transport.announce(impostor, lambda _: None):
                with pytest.raises(Unavailable):
                    await gateway.stack.completion(CompletionRequest(model="m", content="x"))


@pytest.mark.requirement("slow-websocket-client")
async def test_a_client_that_reads_slowly_but_steadily_is_kept() -> None:
    config = GatewayConfig(write_timeout=0.3)
    async with running_gateway(config=config) as gateway:
        reader, writer = await asyncio.open_connection(
            *gateway.url.removeprefix("http://").split(":"), limit=32_768
        )
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        writer.write(
            b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key.encode() + b"\r\n\r\n"
        )
        await reader.readuntil(b"\r\n\r\n")
        call = b'{"jsonrpc":"2.0","id":1,"method":"shapes.count.stream","params":{"to":2000,"size":1000}}'
        writer.write(b"\x81" + bytes([0x80 | len(call)]) + b"\0\0\0\0" + call)
        await writer.drain()
        received = 0
        # With so small a window this takes a few seconds, and each filling of the server's buffer more than its timeout.
        while received < 150_000:
            data = await reader.read(32_768)
            assert data, "the connection was dropped"
            received += len(data)
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()
