"""The gateway's websocket, on a real socket."""

from __future__ import annotations

import anyio
import msgspec
import pytest
from support.gateway import running_gateway
from support.shapes import CountRequest, Numbers
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from ayllu.runtime.config import GatewayConfig
from ayllu.schemas import (
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
